"""Who trains on what, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral_system.batches.micro_batches import bundles, groups_of, micro_batches, price
from ral_system.training.plan import plan_updates
from ral_system.types import Counts, Media, Prompt, Sample, UpdatePlan


def prompt(name: str, tokens: int, visual: int = 0) -> Prompt:
    """A prompt with one picture of so many tokens among its own."""
    media = (Media("0", 28, 28),) if visual else ()
    engine = tuple(range(tokens - visual + 1)) if visual else tuple(range(tokens))
    return Prompt(name, "", "", "", media, tuple(range(tokens)), engine)


def group(name: str, responses: int, tokens: int = 5, length: int = 3) -> list[Sample]:
    of = prompt(name, tokens)
    return [Sample(f"{name}#{i}", of, tuple(range(length))) for i in range(responses)]


def ids(update: UpdatePlan) -> set[str]:
    return {s.id for shard in update.shards for micro in shard for s in micro}


GROUPS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 30), st.lists(st.integers(1, 30), min_size=1, max_size=9)),
    min_size=1,
    max_size=8,
)


@given(GROUPS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 200), st.sampled_from(["groups", "samples"]))
def test_every_sample_once_within_the_budget_and_all_ranks_equally_often(
    groups: list[tuple[int, int, list[int]]], updates: int, world_size: int, max_tokens: int, deal: str
) -> None:
    prompts = [prompt(f"p{g}", max(tokens, visual), visual) for g, (tokens, visual, _) in enumerate(groups)]
    samples = [
        Sample(f"p{g}#{i}", prompts[g], tuple(range(length)))
        for g, (_, _, lengths) in enumerate(groups)
        for i, length in enumerate(lengths)
    ]
    samples = samples[: len(samples) // updates * updates]
    if len(samples) < updates * world_size:
        return
    plan = plan_updates(samples, updates=updates, shards=world_size, max_tokens=max_tokens, deal=deal)  # type: ignore[arg-type]
    assert len(plan.updates) == updates
    everywhere = [s.id for rank in range(world_size) for micro in plan.rank_samples(rank) for s in micro]
    assert sorted(everywhere) == sorted(s.id for s in samples)
    for update in plan.updates:
        mine = [s for shard in update.shards for micro in shard for s in micro]
        assert len(update.shards) == world_size and len(mine) == len(samples) // updates
        assert len({len(shard) for shard in update.shards}) == 1
        assert all(any(shard) for shard in update.shards)
        assert update.counts == Counts(sum(len(s.response_token_ids) for s in mine), len(mine))
        for micro in (micro for shard in update.shards for micro in shard):
            assert len(micro) <= 1 or sum(map(price, groups_of(micro))) <= max_tokens
        if deal == "samples":
            assert ids(update) == {s.id for s in samples[plan.updates.index(update) :: updates]}


def test_visual_tokens_cost_twice_and_a_prompt_once() -> None:
    one = prompt("p", 10, visual=6)
    assert one.visual_tokens == 6
    samples = tuple(Sample(f"p#{i}", one, (1, 2, 3)) for i in range(4))
    assert price(samples) == 10 + 6 + 4 * 3
    assert Prompt("p", "", "", "", (), (1, 2)).visual_tokens == 0
    assert [len(micro) for micro in micro_batches([samples], 22)] == [2, 2]
    assert [len(micro) for micro in micro_batches([samples], 1)] == [1, 1, 1, 1]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 100))
def test_no_two_micro_batches_would_fit_together(sizes: list[int], max_tokens: int) -> None:
    groups = [tuple(group(f"p{i}", 1, tokens=size)) for i, size in enumerate(sizes)]
    found = [groups_of(micro) for micro in micro_batches(groups, max_tokens)]
    assert sorted(one[0].id for micro in found for one in micro) == sorted(one[0].id for one in groups)
    assert all(micro == sorted(micro, key=price) for micro in found)
    smallest = sorted(sum(map(price, micro)) for micro in found)[:2]
    assert len(found) == 1 or sum(smallest) > max_tokens


def test_small_groups_fill_what_large_ones_leave() -> None:
    groups = [tuple(group(f"p{size}{i}", 1, tokens=size - 3)) for i in range(4) for size in (30, 70)]
    found = micro_batches(groups, 100)
    assert [[price(one) for one in groups_of(micro)] for micro in found] == [[30, 70]] * 4
    groups += [tuple(group(f"q{i}", 1, tokens=17)) for i in range(9)]
    found = micro_batches(groups, 100)
    assert [[price(one) for one in groups_of(micro)] for micro in found] == [[20] * 5, [20] * 4, *([[30, 70]] * 4)]


def test_groups_go_to_updates_whole() -> None:
    samples = [sample for g in range(8) for sample in group(f"p{g}", 4)]
    plan = plan_updates(samples, updates=4, shards=2, max_tokens=1000)
    for u, update in enumerate(plan.updates):
        assert ids(update) == {f"p{g}#{i}" for g in (u, u + 4) for i in range(4)}
        assert [len(groups_of(micro)) for shard in update.shards for micro in shard] == [1, 1]


def test_dealing_samples_spreads_a_group_over_the_updates() -> None:
    samples = [sample for g in range(2) for sample in group(f"p{g}", 8)]
    plan = plan_updates(samples, updates=4, shards=2, max_tokens=1000, deal="samples")
    for u, update in enumerate(plan.updates):
        assert ids(update) == {f"p{g}#{i}" for g in range(2) for i in (u, u + 4)}
        assert [[s.prompt.id for s in micro] for shard in update.shards for micro in shard] == [["p0"] * 2, ["p1"] * 2]


def test_a_group_is_cut_only_where_that_pays() -> None:
    three = [sample for g in range(3) for sample in group(f"p{g}", 4, tokens=4, length=10)]
    (update,) = plan_updates(three, updates=1, shards=2, max_tokens=1000).updates
    sizes = [sorted(len(g) for micro in shard for g in groups_of(micro)) for shard in update.shards]
    assert sorted(sizes) == [[2, 4], [2, 4]]
    long = [sample for g in range(3) for sample in group(f"p{g}", 4, tokens=1000, length=1)]
    (update,) = plan_updates(long, updates=1, shards=2, max_tokens=5000).updates
    assert sorted(len(g) for shard in update.shards for micro in shard for g in groups_of(micro)) == [4, 4, 4]
    alone = group("p", 4)
    (update,) = plan_updates(alone, updates=1, shards=2, max_tokens=1000).updates
    assert [len(micro) for shard in update.shards for micro in shard] == [2, 2]


def test_a_rank_with_fewer_micro_batches_gets_empty_ones() -> None:
    long, short = group("long", 1, tokens=100), [s for i in range(4) for s in group(f"short{i}", 1, tokens=20)]
    (update,) = plan_updates([*long, *short], updates=1, shards=2, max_tokens=30).updates
    assert sorted([len(micro) for micro in shard] for shard in update.shards) == [[1, 0, 0, 0], [1, 1, 1, 1]]


def test_is_deterministic() -> None:
    samples = [sample for i in (3, 1, 2, 0) for sample in group(f"s{i}", 1)]
    (update,) = plan_updates(samples, updates=1, shards=1, max_tokens=24).updates
    assert [[s.id for s in micro] for micro in update.shards[0]] == [["s0#0", "s1#0", "s2#0"], ["s3#0"]]


def test_what_cannot_be_dealt_is_refused() -> None:
    for count, updates, ranks in ((9, 2, 3), (4, 2, 3)):
        message = f"{count} samples do not divide into {updates} updates on {ranks} shards"
        with pytest.raises(ValueError, match=message):
            plan_updates(group("p", count), updates=updates, shards=ranks, max_tokens=100)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 400))
def test_bundles_hold_groups_in_order_until_a_pass_is_worth_while(sizes: list[int], max_tokens: int) -> None:
    groups = [tuple(group(f"p{i}", size)) for i, size in enumerate(sizes)]
    found = bundles(groups, max_tokens)
    assert [s for bundle in found for s in bundle] == [s for group in groups for s in group]
    for bundle in found:
        *earlier, last = groups_of(bundle)
        assert all(whole in groups for whole in (*earlier, last))  # whole ones
        assert sum(map(price, earlier)) < max(1, max_tokens // 8)
        assert bundle == found[-1] or sum(map(price, groups_of(bundle))) >= max_tokens // 8
