"""A learner under observation, for the tests of this folder."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ral_system import conf
from ral_system.algorithms.distillation import kept_and_rest, top_tokens
from ral_system.algorithms.token_read import TokenRead
from ral_system.batches.collate import Collator
from ral_system.batches.micro_batches import price
from ral_system.models.policy import PolicyModel
from ral_system.training.learner_rank import LearnerRank
from ral_system.training.plan import plan_updates
from ral_system.types import Prompt, Sample, TokenRecord, TrainPlan

Start = Callable[..., LearnerRank]


class Watched:
    """A learner whose gradients are kept when it steps."""

    def __init__(self, rank: LearnerRank) -> None:
        self.rank = rank
        self.gradients: list[dict[str, Tensor]] = []
        step = rank._engine.step

        def recorded() -> float:
            named = rank._engine.policy.named_parameters()
            self.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})
            return step()

        rank._engine.step = recorded  # type: ignore[method-assign]

    def train(self, plan: TrainPlan, updates: int | None = None) -> list[dict[str, float]]:
        scores = self.rank.score(plan)
        reference = self.rank.score(plan)
        return [self.rank.update(u, scores, reference) for u in plan.updates[:updates]]

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.rank._engine.policy.named_parameters()}


PRESETS = sorted(f.stem for f in (Path(conf.__file__).parent / "algorithm" / "policy_loss").glob("*.yaml"))
"""Names of the policy losses."""


def mismatched(policy: PolicyModel, collate: Collator, samples: list[Sample]) -> list[Sample]:
    """The samples as an engine would report them whose log-probs are off by up to one nat."""
    noise, found = np.random.default_rng(0), []
    for sample in samples:
        with torch.no_grad():
            log_softmax_RV = policy(collate((sample,)), tokens=TokenRead(whole=True)).tokens.whole
        assert log_softmax_RV is not None
        off = torch.from_numpy(noise.uniform(-1, 1, log_softmax_RV.shape)).float()
        reported_RV = (log_softmax_RV + off).log_softmax(-1)
        sampled_R = torch.tensor(sample.response_token_ids)
        ids_RK = top_tokens(reported_RV, sampled_R, 20)
        top = TokenRecord(kept_and_rest(reported_RV, ids_RK).numpy(), ids_RK.int().numpy())
        log_probs = tuple(reported_RV.gather(-1, sampled_R[:, None])[:, 0].tolist())
        found.append(replace(sample, rollout_log_probs=log_probs, rollout_top=top))
    return found


def plan(samples: list[Sample], updates: int, at_a_time: int) -> TrainPlan:
    """Plan micro-batches with room for `at_a_time` samples of the most expensive kind."""
    max_tokens = at_a_time * max(price((sample,)) for sample in samples)
    return plan_updates(samples, updates=updates, shards=1, max_tokens=max_tokens)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def three_each(samples: Sequence[Sample], count: int = 4) -> list[Sample]:
    """Three responses to each of `count` questions."""
    advantages = (0.9, -0.5, -0.4)
    return [
        Sample(f"{s.prompt.id}#{n}", s.prompt, s.response_token_ids[n:], s.rollout_log_probs[n:], a, index=n)
        for s in samples[:count]
        for n, a in enumerate(advantages)
    ]


def texts(samples: Sequence[Sample]) -> list[Sample]:
    """These responses, to questions without a picture."""
    return [
        replace(s, id=f"text/{s.id}", prompt=Prompt(f"text/{s.prompt.id}", "", "?", "", (), s.response_token_ids[:2]))
        for s in samples
    ]
