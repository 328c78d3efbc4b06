"""A learner under observation, for the tests of this folder."""

from collections.abc import Callable

import torch
from torch import Tensor

from ral_system.training.learner_rank import LearnerRank
from ral_system.training.plan import plan_updates
from ral_system.types import Sample, TrainPlan

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
        scores = self.rank.score(plan.rank_samples(0))
        reference = self.rank.score(plan.rank_samples(0))
        return [self.rank.update(u, scores, reference) for u in plan.updates[:updates]]

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.rank._engine.policy.named_parameters()}


def plan(samples: list[Sample], updates: int, micro_batch: int) -> TrainPlan:
    return plan_updates(samples, updates=updates, world_size=1, micro_batch=micro_batch)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
