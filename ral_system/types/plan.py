"""Which samples make up each optimiser update, on which rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ral_system.types.sample import Credit, Sample


@dataclass(frozen=True, slots=True)
class Counts:
    """Global denominators of one optimiser update, fixed before its first backward.

    Example: two sequences of 3 and 5 response tokens over all ranks: `Counts(tokens=8, sequences=2)`
    """

    tokens: int
    sequences: int
    attention_rows: int = 0
    """Attention rows that the attention term reads; 0 for an objective without one."""
    evidence_rows: int = 0
    """Attention rows that are drawn to evidence."""


MicroBatch = tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """One optimiser update: `shards[rank][i]` is that rank's i-th micro-batch. All ranks have equally many.

    Example: one micro-batch on each of two ranks: `UpdatePlan(shards=(((a,),), ((b,),)), counts=Counts(8, 2))`
    """

    shards: tuple[tuple[MicroBatch, ...], ...]
    counts: Counts


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """The K updates of one rollout batch. A sample stays on one rank in all of them, where its old scores are."""

    updates: tuple[UpdatePlan, ...]

    def rank_samples(self, rank: int) -> tuple[MicroBatch, ...]:
        """Every micro-batch that `rank` trains on, in order, for scoring them once beforehand."""
        return tuple(micro for update in self.updates for micro in update.shards[rank])

    def rank_ids(self, rank: int) -> list[str]:
        """Every sample that `rank` trains on, by id."""
        return [sample.id for micro in self.rank_samples(rank) for sample in micro]

    def versions_by_micro_batch(self) -> tuple[frozenset[int], ...]:
        """Return for every micro-batch of `rank_samples` the weights that made its tokens, on any rank."""
        together = zip(*(self.rank_samples(rank) for rank in range(len(self.updates[0].shards))), strict=True)
        return tuple(frozenset(v for micro in ranks for s in micro for v in s.weight_versions) for ranks in together)

    def with_advantages(self, advantages: Mapping[str, float], credit: Mapping[str, Credit]) -> TrainPlan:
        """Copy the plan with each sample's advantage and credit; both hold every sample's id."""

        def judged(micro: MicroBatch) -> MicroBatch:
            return tuple(replace(s, advantage=advantages[s.id], credit=credit[s.id]) for s in micro)

        return TrainPlan(
            tuple(
                replace(update, shards=tuple(tuple(judged(micro) for micro in shard) for shard in update.shards))
                for update in self.updates
            )
        )
