"""Training attention by policy gradient, with the system's own objectives, where the right attention is known.

Suffixes as in `retrieval`; G responses of a group, S = B G, two tokens of a response.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ral_system.algorithms.advantages import centred, normalised
from ral_system.algorithms.attention_objectives.credit import contrast, credit
from ral_system.algorithms.attention_objectives.evidence import evidence
from ral_system.algorithms.attention_objectives.group_anchor import group_anchor
from ral_system.algorithms.attention_objectives.inputs import AttentionInputs, Evidence, Glances
from ral_system.algorithms.attention_objectives.ral import ral
from ral_system.algorithms.divergence_sum import divergence
from ral_system.algorithms.policy_losses.clip import clip_loss
from ral_system.algorithms.policy_losses.inputs import LossInputs
from ral_system.algorithms.reduction import reduce_rows
from ral_system.config.attention_objective import (
    AttentionObjectiveGroup,
    CreditObjectiveConfig,
    EvidenceObjectiveConfig,
    GroupAnchorObjectiveConfig,
    RalObjectiveConfig,
)
from ral_system.config.policy_loss import ClipLossConfig
from ral_system.studies.icl.retrieval import Prompts, Reader, World, rows
from ral_system.training.gradient_share import hold, scaled, share, squared_norms

CLIP = ClipLossConfig(name="clip", clip_low=0.2, clip_high=0.2, dual_clip=None)


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train: GRPO, and an attention objective."""

    objective: Callable[[AttentionInputs, Any], Tensor] | None = None
    settings: AttentionObjectiveGroup | None = None
    permuted: bool = False
    """Control: rewards change places within the group, for the attention objective alone."""
    alone: bool = False
    """Whether nothing but the attention objective trains attention: the answer's token has no gradient through it, and
    the first token is trained as ever."""


_CREDIT = CreditObjectiveConfig(name="credit", proximal=1.0)
_GROUP_ANCHOR = GroupAnchorObjectiveConfig(name="group_anchor", repel=0.5)
_EVIDENCE = EvidenceObjectiveConfig(
    name="evidence", gate=-math.inf, spread=0.25, smoothing=0.1, boxes="own", missing="raise"
)

ARMS: dict[str, Arm] = {
    "GRPO": Arm(),
    "RAL": Arm(ral, RalObjectiveConfig(name="ral")),
    "credit": Arm(credit, _CREDIT),
    "group anchor": Arm(group_anchor, _GROUP_ANCHOR),
    "told": Arm(evidence, _EVIDENCE),
}
"""GRPO, and GRPO with an attention objective; `told` is given the right attention of every row."""
ALONE: dict[str, Arm] = {
    "credit": Arm(credit, _CREDIT, alone=True),
    "credit, permuted": Arm(credit, _CREDIT, alone=True, permuted=True),
    "group anchor": Arm(group_anchor, _GROUP_ANCHOR, alone=True),
    "group anchor, permuted": Arm(group_anchor, _GROUP_ANCHOR, alone=True, permuted=True),
    "told": Arm(evidence, _EVIDENCE, alone=True),
}
"""Attention trained by its objective alone. RAL is missing: it never moves attention from where it starts."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How much is trained and measured, for one seed and arm."""

    steps: int
    prompts: int
    responses: int
    updates: int
    """Updates per step; each takes whole groups, an equal share of the batch."""
    learning_rate: float
    """Adam's, with betas 0.9 and 0.99."""
    spread: float
    """Standard deviation of answers around what attention says."""
    gradient_share: float
    """Share of the gradient at the rows' queries that the attention objective is held at."""
    test_prompts: int
    measure_every: int


FULL = Schedule(50, 6, 8, 2, 0.03, 0.3, 0.2, 512, 5)
QUICK = Schedule(10, 4, 4, 2, 0.03, 0.3, 0.2, 128, 5)


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's rollout."""

    prompts: Prompts
    plans: Tensor
    """int64 [B, G]."""
    answers: Tensor
    """[B, G]."""
    old_rows: Tensor
    """[B, G, N], attention at the weights that answered."""
    old_log_probs: Tensor
    """[B, G, 2]."""
    rewards: Tensor
    """[B, G]."""
    advantages: Tensor
    """[B, G], GRPO's."""
    attention_advantages: Tensor
    """[B, G], as the attention objective gets them."""
    outcomes: tuple[tuple[float | None, ...], ...]
    """Reward minus the group's mean, by prompt, as the attention objective gets it."""
    judged: tuple[tuple[float | None, ...], ...]
    """Reward minus the group's mean, of the responses that got it."""


class Terms(NamedTuple):
    """The losses of an update, and the queries at which their gradients are compared: [1, 1, S, D]."""

    loss: Tensor
    attention: Tensor | None
    queries: Tensor


def run(arm: Arm, schedule: Schedule, seed: int) -> list[dict[str, float]]:
    """Train from a random start and measure every few steps, first before the first. Arms of a seed start alike.

    A measurement has the expected `reward` on held-out prompts and `best_reward`, which no attention can exceed; the
    Jensen-Shannon divergence from the right attention of the `clear` and the `noisy` modality's row and, as the plan
    mixes them, `distance`; `plan`, the probability of looking with the clear one; and, of the steps since the last,
    `contrast` (kappa; 0 if all responses to each prompt looked alike) and `gradient_share`.
    """
    generator = torch.Generator().manual_seed(seed)
    world, reader = World.draw(generator), Reader(generator)
    held_out = world.prompts(schedule.test_prompts, torch.Generator().manual_seed(10_000 + seed))
    optimizer = torch.optim.Adam(reader.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.99))
    order = random.Random(seed)
    found = [{"step": 0, **measure(reader, world, held_out, schedule.spread)}]
    contrasts, shares = torch.zeros(2, dtype=torch.float64), []
    for step in range(1, schedule.steps + 1):
        batch = roll_out(reader, world, arm, schedule, generator, order)
        contrasts += contrast_sums(batch)
        for chosen in torch.arange(schedule.prompts).split(schedule.prompts // schedule.updates):
            shares.append(update(reader, world, optimizer, batch, chosen, arm, schedule))
        if step % schedule.measure_every == 0:
            kappa = float(contrasts[0] / contrasts[1]) if contrasts[1] > 0 else 0.0
            between = {"contrast": kappa, "gradient_share": sum(shares) / len(shares)}
            found.append({"step": step, **measure(reader, world, held_out, schedule.spread), **between})
            contrasts, shares = torch.zeros(2, dtype=torch.float64), []
    return found


@torch.no_grad()
def roll_out(
    reader: Reader, world: World, arm: Arm, schedule: Schedule, generator: torch.Generator, order: random.Random
) -> Batch:
    """Draw prompts and a group of responses to each. The reward is minus the squared error."""
    shape = (schedule.prompts, schedule.responses)
    prompts = world.prompts(schedule.prompts, generator)
    log_plans_M = reader.plan_M.log_softmax(0)
    plans = torch.multinomial(log_plans_M.exp(), shape[0] * shape[1], replacement=True, generator=generator).view(shape)
    old_rows = reader.attention(prompts)[torch.arange(shape[0])[:, None], plans]
    means = (old_rows * prompts.responses[:, None]).sum(-1)
    answers = means + schedule.spread * torch.randn(shape, generator=generator)
    rewards = -(answers - prompts.answers[:, None]).square()
    advantages, judged = ([tuple(of(group)) for group in rewards.tolist()] for of in (normalised, centred))
    orders = [_order(schedule.responses, arm.permuted, order) for _ in judged]
    return Batch(
        prompts,
        plans,
        answers,
        old_rows,
        torch.stack([log_plans_M[plans], log_density(answers, means, schedule.spread)], -1),
        rewards,
        torch.tensor(advantages),
        torch.tensor([[group[i] for i in places] for group, places in zip(advantages, orders, strict=True)]),
        tuple(tuple(group[i] for i in places) for group, places in zip(judged, orders, strict=True)),
        tuple(judged),
    )


def update(
    reader: Reader,
    world: World,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    chosen: Tensor,
    arm: Arm,
    schedule: Schedule,
) -> float:
    """One step of the optimiser on the groups `chosen`; return the attention objective's share of the gradient."""
    terms = losses(reader, world, batch, chosen, arm, schedule)
    loss, held = terms.loss, 0.0
    if arm.alone:
        assert terms.attention is not None
        loss, held = loss + terms.attention, 1.0
    elif terms.attention is not None:
        squared = squared_norms(terms, [(terms.queries, torch.arange(terms.queries.shape[2]))])
        factor = hold(squared, schedule.gradient_share, "float32")
        loss, held = loss + factor * terms.attention, share(scaled(squared, factor))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return held


def losses(reader: Reader, world: World, batch: Batch, chosen: Tensor, arm: Arm, schedule: Schedule) -> Terms:
    """GRPO's clipped surrogate of both tokens, and the attention objective of the answers' rows."""
    plans_S, group = batch.plans[chosen].flatten(), batch.plans.shape[1]
    of_S = chosen.repeat_interleave(group)
    queries = reader.queries(batch.prompts.views[of_S, plans_S], plans_S)[None, None]
    rows_SN = rows(queries[0, 0], batch.prompts.codes[of_S])
    read_SN = rows_SN.detach() if arm.alone else rows_SN
    means_S = (read_SN * batch.prompts.responses[of_S]).sum(-1)
    answers_S = batch.answers[chosen].flatten()
    log_probs_S2 = torch.stack(
        [reader.plan_M.log_softmax(0)[plans_S], log_density(answers_S, means_S, schedule.spread)], -1
    )
    old_S2 = batch.old_log_probs[chosen].flatten(0, 1)
    mask_S2 = torch.ones_like(old_S2, dtype=torch.bool)
    tokens = clip_loss(LossInputs(log_probs_S2, old_S2, old_S2, batch.advantages[chosen].flatten(), mask_S2), CLIP)
    counts: dict[str, Any] = {"global_tokens": mask_S2.numel(), "global_sequences": len(of_S)}
    loss = reduce_rows(tokens.values, mask_S2, reduction="token_mean", **counts)
    if arm.objective is None:
        return Terms(loss, None, queries)
    inputs = attention_inputs(world, batch, chosen, rows_SN)
    return Terms(loss, arm.objective(inputs, arm.settings), queries)


def attention_inputs(world: World, batch: Batch, chosen: Tensor, rows_SN: Tensor) -> AttentionInputs:
    """Return the inputs of the system's objectives for responses to the prompts `chosen`: one row each, one head."""
    group = batch.plans.shape[1]
    old_SN = batch.old_rows[chosen].flatten(0, 1)
    one_row_S1 = torch.ones(len(rows_SN), 1, dtype=torch.bool)
    old = {b: batch.old_rows[b].double() for b in chosen.tolist()}
    glances = tuple(
        Glances(own, old[b], batch.outcomes[b], index)
        for own, (b, index) in zip(rows_SN, ((b, i) for b in old for i in range(group)), strict=True)
    )
    right_BMN = world.right_attention(batch.prompts)
    right_SN = right_BMN[chosen[:, None], batch.plans[chosen]].flatten(0, 1)
    everyone_S = one_row_S1[:, 0]  # no reward keeps a response from being told
    told = Evidence(divergence(rows_SN, right_SN, "reverse_kl")[:, None], everyone_S, len(rows_SN))
    return AttentionInputs(
        divergence(rows_SN, old_SN, "jsd")[:, None],
        batch.attention_advantages[chosen].flatten(),
        one_row_S1,
        glances,
        "token_mean",
        len(rows_SN),
        len(rows_SN),
        told,
    )


def contrast_sums(batch: Batch) -> Tensor:
    """Sums over all responses of what `contrast` returns: float64 [2]. Their quotient is kappa."""
    groups = zip(batch.old_rows.double(), batch.judged, strict=True)
    return sum((torch.stack(contrast(of, judged)).sum(1) for of, judged in groups), torch.zeros(2, dtype=torch.float64))


@torch.no_grad()
def measure(reader: Reader, world: World, prompts: Prompts, spread: float) -> dict[str, float]:
    """See `run`. Expected over plans and answers, without drawing any."""
    plan_M = reader.plan_M.softmax(0)
    right_BMN, found_BMN = world.right_attention(prompts), reader.attention(prompts)

    def rewards(attention_BMN: Tensor) -> Tensor:
        errors_BM = (attention_BMN * prompts.responses[:, None]).sum(-1) - prompts.answers[:, None]
        return -errors_BM.square().mean(0) - spread**2

    distance_M = divergence(found_BMN, right_BMN, "jsd").mean(0)
    return {
        "reward": float(plan_M @ rewards(found_BMN)),
        "best_reward": float(rewards(right_BMN).max()),
        "distance": float(plan_M @ distance_M),
        "clear": float(distance_M[0]),
        "noisy": float(distance_M[1]),
        "plan": float(plan_M[0]),
    }


def log_density(answers: Tensor, means: Tensor, spread: float) -> Tensor:
    """ln N(answers; means, spread²) without its constant, which no ratio or gradient sees."""
    return -0.5 * ((answers - means) / spread).square()


def _order(size: int, permuted: bool, order: random.Random) -> list[int]:
    return order.sample(range(size), size) if permuted else list(range(size))
