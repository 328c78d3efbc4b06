"""One training step of Reinforced Attention Learning, in the order of the algorithm.

    prompts ─► rollout engines (mu) ─► rewards (since the rollout) ─────────────────► group advantages
                    ▲               └► reference log-probs, a teacher's distributions        │
                    │                  and attention (since the rollout), old log-probs      │
                    │                  and attention (learner)                               │
                    │                                 │                                      ▼
                    └─ weights, version + 1 ── passes of K updates ◄─────────────────────────┘

Tensors travel from role to role by reference; this file sees scalars and token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ral_system.config.commands import TrainConfig
from ral_system.controller.credit import attention_credit
from ral_system.controller.judging import judge, rollout_metrics
from ral_system.controller.residency import Residency
from ral_system.controller.sampling import Batch, Sampler, sampling_metrics
from ral_system.errors import GateError
from ral_system.observability.progress import PhaseTimer
from ral_system.protocols import Ref, Roles
from ral_system.registry import DIVERGENCES
from ral_system.rewards.total import Rewards
from ral_system.training.plan import plan_updates
from ral_system.types import Prompt, Rollout, Sample

FIRST_UPDATE = {"float32": 1e-9, "bfloat16": 1e-4}
"""Largest mean divergence of the first update by learner dtype; of one that is linear, as total variation is, the root.

The two passes are the same computation and differ by exactly 0 on CPU; this leaves room for kernels whose sums have no
fixed order."""

_SIGNS = ("positive", "negative")


@dataclass(frozen=True, slots=True)
class Step:
    """Result of one step."""

    rollouts: tuple[Rollout, ...]
    metrics: dict[str, float]


class TrainingLoop:
    """Runs steps against the roles. `version` counts trained batches: the weights that rollouts are made with.

    `train_prompt(i)` is the i-th prompt of the endless training sequence; a step consumes the next ones.
    """

    def __init__(
        self,
        config: TrainConfig,
        roles: Roles,
        train_prompt: Callable[[int], Prompt],
        timer: PhaseTimer,
        residency: Residency,
        *,
        ahead: PhaseTimer | None = None,
    ) -> None:
        """`ahead` takes the times of sampling where that goes on beside training."""
        self._config = config
        self._roles = roles
        self._residency = residency
        algorithm = config.algorithm
        self._rewards = Rewards(config.reward, algorithm.overlong, algorithm.kl, config.rollout.response_limit)
        self._sampler = Sampler(config, roles, train_prompt, ahead or timer, self._rewards, ahead=ahead is not None)
        self._timer = timer
        self.version = 0
        self.next_prompt = 0

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the reward's parts by name."""
        return self._rewards.weights

    def publish(self) -> int:
        """Give the rollout engines the learner's weights; call once before the first step and after a resume.

        Returns the number of tensors verified.
        """
        with self._timer.phase("sync"):
            return self._residency.publish(self.version)

    def step(self, *, until_pause: int = 1) -> Step:
        """Train on one rollout batch: generate, judge, score, update, publish. It always pauses after that."""
        self._residency.generate()
        batch = self._sampler.draw(self.next_prompt, self.version)
        self._residency.train()
        rollouts, metrics = self._train(batch)
        metrics["gate/tensors_verified"] = float(self.publish())
        return self._finished(rollouts, metrics)

    def close(self) -> None:
        """Do nothing: no work is under way between two steps."""

    def _train(self, batch: Batch) -> tuple[list[Rollout], dict[str, float]]:
        """Score and judge the batch and update on it; the learner is then one version further."""
        algorithm, learner = self._config.algorithm, self._roles.learner
        self._sampler.submit(batch)
        plan = plan_updates(
            [Sample.of(prompt, c) for prompt, group in batch.groups for c in group],
            updates=algorithm.updates_per_step,
            shards=learner.shards,
            max_tokens=self._config.learner.pass_tokens,
            deal=algorithm.deal,
        )
        with self._timer.phase("score"):
            behaviour = learner.score(plan)
            reference = self._roles.reference.collect(plan) if self._roles.reference else None
            teaching = [teacher.collect(plan) for teacher in self._roles.teachers]
            looks, kl = self._visual_rewards(behaviour, reference), self._kl(behaviour, reference)
        verdicts = batch.verdicts
        if verdicts is None:  # otherwise the verifiers may already be at the next batch
            with self._timer.phase("reward"):
                verdicts = dict(self._roles.rewarder.collect())
        rollouts = judge(algorithm, self._rewards, batch.groups, verdicts, looks, kl)
        credit = attention_credit(rollouts, algorithm, self._config.seed)
        plan = plan.with_advantages({rollout.completion.id: rollout.advantage for rollout in rollouts}, credit)
        with self._timer.phase("update"):
            queued = [
                learner.update(plan, k, behaviour, reference, *teaching)
                for _ in range(algorithm.passes_per_step)
                for k in range(algorithm.updates_per_step)
            ]
            updates = [metrics() for metrics in queued]
        if algorithm.attention.anchor == "old" and batch.version == self.version:
            exact = FIRST_UPDATE[self._config.learner.dtype]
            linear = DIVERGENCES.get(algorithm.attention.divergence).linear
            check_first_update(updates[0], exact**0.5 if linear else exact)

        metrics = {**rollout_metrics(rollouts), **sampling_metrics(batch), **update_metrics(updates)}
        metrics |= learner.meters()
        metrics["attention/divergence_first_update"] = updates[0]["attention/divergence"]
        metrics |= {"gate/prompts_verified": float(len(rollouts)), "prompts/first": float(self.next_prompt)}
        self.version, self.next_prompt = self.version + 1, self.next_prompt + batch.drawn
        metrics |= {"prompts/end": float(self.next_prompt), "learner/version": float(self.version)}
        metrics |= batch.times
        metrics["rollout/tokens_per_s"] = float(batch.tokens)  # from the times that are known when the step ends
        return rollouts, metrics

    def _finished(self, rollouts: Sequence[Rollout], metrics: dict[str, float]) -> Step:
        times = self._timer.drain()
        tokens = sum(len(r.prompt.token_ids) + len(r.completion.token_ids) for r in rollouts)
        metrics |= times | {"step/tokens_per_s_per_device": tokens / sum(times.values()) / self._roles.devices}
        metrics["rollout/tokens_per_s"] /= metrics.get("ahead/rollout_s") or metrics["time/rollout_s"]
        return Step(tuple(rollouts), metrics)

    def _visual_rewards(self, behaviour: Sequence[Ref], reference: Sequence[Ref] | None) -> Mapping[str, float]:
        """Map sample ids to how much the response looks at pictures; empty if no signal needs that."""
        if not self._rewards.need("visual"):
            return {}
        if self._config.reward.visual.given_by("policy"):
            return self._roles.learner.visual_rewards(behaviour)
        assert self._roles.reference is not None and reference is not None
        return self._roles.reference.visual_rewards(reference)

    def _kl(self, behaviour: Sequence[Ref], reference: Sequence[Ref] | None) -> Mapping[str, float]:
        """Map sample ids to the KL to the reference; empty if no signal needs it."""
        if not self._rewards.need("kl"):
            return {}
        assert reference is not None
        return self._roles.learner.kl(behaviour, reference)


def check_first_update(update: Mapping[str, float], tolerance: float) -> None:
    """Raise GateError unless the first update's attention is the old policy's: both have the same weights."""
    divergence = update["attention/divergence"]
    if not divergence <= tolerance:
        raise GateError(
            f"the first update's attention differs from that of the old policy (divergence {divergence:.3g}, more "
            f"than {tolerance:g}); scoring and training see different inputs or weights"
        )


def update_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over the updates that have a metric; maxima stay maxima.

    Beside them the last update's divergences, and the attention term's share of the gradient and the factor on it in
    every update, counted from 1: on policy the share is 0, and it grows with the distance from the rollout's weights.
    """
    combined = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        values = [update[name] for update in updates if name in update]
        combined[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    last = {f"attention/divergence_{sign}_last": updates[-1][f"attention/divergence_{sign}"] for sign in _SIGNS}
    each = {
        f"{name}_update_{k}": update[name]
        for name in ("attention/gradient_share", "attention/gradient_factor")
        for k, update in enumerate(updates, start=1)
        if name in update
    }
    return combined | last | each
