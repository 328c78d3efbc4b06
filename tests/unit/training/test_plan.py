import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral_system.training.plan import plan_updates
from ral_system.types import Counts, Prompt, Sample


def sample(i: int, length: int = 1) -> Sample:
    return Sample(f"s{i}", Prompt(f"s{i}", "", "", "", (), (1, 2)), tuple(range(length)))


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.lists(st.integers(1, 9), min_size=60)
)
def test_every_sample_once_and_all_ranks_equally_often(
    updates: int, world_size: int, each: int, micro_batch: int, lengths: list[int]
) -> None:
    samples = [sample(i, lengths[i]) for i in range(updates * world_size * each)]
    plan = plan_updates(samples, updates=updates, world_size=world_size, micro_batch=micro_batch)
    assert len(plan.updates) == updates
    everywhere = [s for rank in range(world_size) for micro in plan.rank_samples(rank) for s in micro]
    assert sorted(s.id for s in everywhere) == sorted(s.id for s in samples)
    for update in plan.updates:
        assert len(update.shards) == world_size
        assert len({tuple(map(len, shard)) for shard in update.shards}) == 1
        mine = [s for shard in update.shards for micro in shard for s in micro]
        assert all(1 <= len(micro) <= micro_batch for shard in update.shards for micro in shard)
        assert update.counts == Counts(sum(len(s.response_token_ids) for s in mine), len(mine))
        assert len(mine) == world_size * each
        for shard in update.shards:
            order = [s.length for micro in shard for s in micro]
            assert order == sorted(order)


def test_a_group_is_spread_over_the_updates() -> None:
    samples = [sample(i) for i in range(16)]  # two groups of 8 in a row
    plan = plan_updates(samples, updates=4, world_size=2, micro_batch=16)
    for u, update in enumerate(plan.updates):
        assert {s.id for shard in update.shards for micro in shard for s in micro} == {f"s{i}" for i in range(u, 16, 4)}
        groups = [sorted(int(s.id[1:]) // 8 for micro in shard for s in micro) for shard in update.shards]
        assert groups == [[0, 1], [0, 1]]


def test_is_deterministic_for_equal_lengths() -> None:
    samples = [sample(i) for i in (3, 1, 2, 0)]
    (update,) = plan_updates(samples, updates=1, world_size=1, micro_batch=3).updates
    assert [[s.id for s in micro] for micro in update.shards[0]] == [["s0", "s1", "s2"], ["s3"]]


def test_what_cannot_be_dealt_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="10 samples do not divide into 2 updates on 3 ranks"):
        plan_updates([sample(i) for i in range(10)], updates=2, world_size=3, micro_batch=1)
