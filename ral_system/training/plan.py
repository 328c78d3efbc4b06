"""Split of a batch into updates, shards and micro-batches, with the global denominators of each update."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from ral_system.batches.micro_batches import groups_of, micro_batches, price
from ral_system.config.choices import Deal
from ral_system.types import Counts, MicroBatch, Sample, TrainPlan, UpdatePlan


def plan_updates(
    samples: Sequence[Sample], *, updates: int, shards: int, max_tokens: int, deal: Deal = "groups"
) -> TrainPlan:
    """Split `samples` into `updates` optimiser updates of equally many samples, over `shards` shards, one for
    each rank, or for each group of ranks that hold micro-batches together.

    Neighbouring samples with one prompt are a group. With `deal="groups"` update u takes every updates-th group from u
    on, and a group is cut where the updates would not be equally large otherwise; with `deal="samples"` it takes every
    updates-th sample, so the members of a group are spread over the updates. Within an update, groups stay whole
    in a shard unless cutting one makes the busiest shard's tokens fewer by a sixteenth. Micro-batches hold up to
    `max_tokens` (`data.micro_batches`). All shards have equally many, for which some may be empty. Raises ValueError
    when there are too few samples, or they do not divide.
    """
    if len(samples) % updates or len(samples) < updates * shards:
        raise ValueError(f"{len(samples)} samples do not divide into {updates} updates on {shards} shards")
    if deal == "groups":
        groups = groups_of(samples)
        order = iter([sample for u in range(updates) for group in groups[u::updates] for sample in group])
        dealt = [list(islice(order, len(samples) // updates)) for _ in range(updates)]
    else:
        dealt = [list(samples[u::updates]) for u in range(updates)]
    plans = []
    for mine in dealt:
        dealt_out = [micro_batches(groups, max_tokens) for groups in _over_ranks(groups_of(mine), shards)]
        counts = Counts(tokens=sum(len(s.response_token_ids) for s in mine), sequences=len(mine))
        plans.append(UpdatePlan(_equally_many(dealt_out), counts))
    return TrainPlan(tuple(plans))


def _over_ranks(groups: Sequence[MicroBatch], world_size: int) -> list[list[MicroBatch]]:
    """Each rank's groups: dealt largest first, each to the rank with the fewest tokens so far.

    As long as that lowers the tokens of the busiest rank by a sixteenth, or ranks are without samples, the largest
    group that can be is cut in two.
    """
    best = _dealt(groups, world_size)
    while True:
        busiest = max(best, key=_tokens)
        idle = not all(best)
        candidates = [g for rank in best for g in rank] if idle else busiest
        divisible = [group for group in candidates if len(group) > 1]
        if not divisible:
            return best
        largest = max(divisible, key=price)
        half = len(largest) // 2
        pieces = [g for rank in best for g in rank if g is not largest] + [largest[:half], largest[half:]]
        other = _dealt(pieces, world_size)
        if not idle and 16 * max(map(_tokens, other)) > 15 * _tokens(busiest):
            return best
        best = other


def _dealt(groups: Sequence[MicroBatch], world_size: int) -> list[list[MicroBatch]]:
    ranks: list[list[MicroBatch]] = [[] for _ in range(world_size)]
    for group in sorted(groups, key=lambda g: (-price(g), g[0].id)):
        min(ranks, key=_tokens).append(group)
    return ranks


def _tokens(groups: Sequence[MicroBatch]) -> int:
    return sum(map(price, groups))


def _equally_many(ranks: Sequence[list[MicroBatch]]) -> tuple[tuple[MicroBatch, ...], ...]:
    """Cut micro-batches in two, and add empty ones where none can be cut, until all ranks have equally many."""
    most = max(map(len, ranks))
    for mine in ranks:
        while len(mine) < most:
            at = max(range(len(mine)), key=lambda i: len(mine[i]))
            groups = groups_of(mine[at])
            if len(groups) == 1:
                groups = [mine[at][i : i + 1] for i in range(len(mine[at]))]
            half = len(groups) // 2
            halves = [tuple(s for group in part for s in group) for part in (groups[:half], groups[half:])]
            mine[at : at + 1] = halves if half else [mine[at], ()]
    return tuple(map(tuple, ranks))
