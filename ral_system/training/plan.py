"""Split of a batch into ranks, updates and micro-batches, with the global denominators of each update."""

from __future__ import annotations

from collections.abc import Sequence

from ral_system.types import Counts, MicroBatch, Sample, TrainPlan, UpdatePlan


def plan_updates(samples: Sequence[Sample], *, updates: int, world_size: int, micro_batch: int) -> TrainPlan:
    """Split `samples`, in order, into `updates` optimiser updates over `world_size` ranks.

    Update u takes every updates-th sample from u on, so that the members of a group are spread over the updates; rank r
    takes every world_size-th of those. A rank's share is cut into micro-batches of at most `micro_batch`, sorted by
    length so that little is padded. All ranks get equally many samples, hence equally many micro-batches. Raises
    ValueError when the samples cannot be dealt evenly.
    """
    if len(samples) % (updates * world_size):
        raise ValueError(f"{len(samples)} samples do not divide into {updates} updates on {world_size} ranks")
    plans = []
    for u in range(updates):
        mine = samples[u::updates]
        shards = tuple(_micro_batches(mine[rank::world_size], micro_batch) for rank in range(world_size))
        counts = Counts(tokens=sum(len(s.response_token_ids) for s in mine), sequences=len(mine))
        plans.append(UpdatePlan(shards, counts))
    return TrainPlan(tuple(plans))


def _micro_batches(samples: Sequence[Sample], size: int) -> tuple[MicroBatch, ...]:
    ordered = sorted(samples, key=lambda s: (s.length, s.id))
    return tuple(tuple(ordered[i : i + size]) for i in range(0, len(ordered), size))
