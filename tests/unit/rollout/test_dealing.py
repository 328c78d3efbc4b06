from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ral_system.rollout.dealing import deal
from ral_system.types import Piece, Prompt, Sampling

SAMPLING = Sampling(completions=8, temperature=1.0, max_new_tokens=100, seed=0)


def prompts(*tokens: int) -> list[Prompt]:
    return [Prompt(f"p{i}", "", "", "", (), (1,) * count) for i, count in enumerate(tokens)]


def load(share: list[Piece]) -> int:
    return sum(len(p.prompt.token_ids) + p.completions * SAMPLING.max_new_tokens for p in share)


@pytest.mark.parametrize("engines", [1, 2, 3, 7, 15, 64, 100])
def test_every_completion_is_dealt_once(engines: int) -> None:
    of_batch = prompts(10, 900, 30, 30, 500, 20, 10, 70)
    shares = deal(of_batch, SAMPLING, engines)
    assert len(shares) == engines
    dealt = Counter(
        (p.prompt.id, i) for share in shares for p in share for i in range(p.first, p.first + p.completions)
    )
    assert dealt == {(prompt.id, i): 1 for prompt in of_batch for i in range(8)}
    assert shares == deal(of_batch, SAMPLING, engines)
    order = [prompt.id for prompt in of_batch]
    for share in shares:  # an engine processes a prompt's media once if its pieces are neighbours
        assert [p.prompt.id for p in share] == sorted((p.prompt.id for p in share), key=order.index)


def test_eight_prompts_keep_fifteen_engines_busy() -> None:
    shares = deal(prompts(*[50] * 8), SAMPLING, 15)
    assert all(shares)
    assert max(p.completions for share in shares for p in share) <= 8
    assert sum(len(share) for share in shares) <= 16  # and no group is prefilled more often than that takes


def test_groups_stay_whole_where_no_engine_is_idle() -> None:
    shares = deal(prompts(*[50] * 9), SAMPLING, 3)
    assert sorted(len(share) for share in shares) == [3, 3, 3]
    assert {p.completions for share in shares for p in share} == {8}
    assert deal(prompts(*[50] * 8), SAMPLING, 1) == [[Piece(p, 0, 8) for p in prompts(*[50] * 8)]]


def test_a_group_is_cut_where_one_engine_would_have_twice_the_work() -> None:
    shares = deal(prompts(*[50] * 16), SAMPLING, 15)
    assert max(map(load, shares)) < 1.6 * min(map(load, shares))
    # a second prefill of 2000 tokens would cost more than it saves
    assert [len(share) for share in deal(prompts(2000, 10), SAMPLING, 2)] == [1, 1]


def test_long_prompts_count() -> None:
    shares = deal(prompts(2000, 10, 10, 10), replace(SAMPLING, completions=1), 2)
    assert [[p.prompt.id for p in share] for share in shares] == [["p0"], ["p1", "p2", "p3"]]
    picture = Prompt("v", "", "", "", (), (1,) * 500, engine_token_ids=(1,) * 100)  # encoded, then read
    shares = deal([*prompts(600, 50), picture], replace(SAMPLING, completions=1), 2)
    assert [[p.prompt.id for p in share] for share in shares] == [["v"], ["p0", "p1"]]


def test_fewer_completions_than_engines_leave_some_idle() -> None:
    shares = deal(prompts(10), replace(SAMPLING, completions=2), 3)
    assert sorted(map(len, shares)) == [0, 1, 1]
    assert deal([], SAMPLING, 2) == [[], []]


def test_one_of_several_longest_shares_is_cut() -> None:
    shares = deal(prompts(*[50] * 5), Sampling(8, 1.0, 100, 0), 3)
    assert sorted(sum(piece.completions for piece in share) for share in shares) == [12, 12, 16]  # whole: 8, 16, 16


def test_no_engine_waits_for_one_long_prompt() -> None:
    """The longest share is a single response of the long prompt, which nothing shortens: the other group is cut."""
    long, short = prompts(2000, 10)
    shares = deal([long, short], SAMPLING, 15)
    assert sorted(sum(p.completions for p in share) for share in shares) == [1] * 14 + [2]
    assert sum(p.prompt == short for share in shares for p in share) >= 7


@given(
    tokens=st.lists(st.sampled_from([1, 10, 50, 500, 2000]), max_size=8),
    completions=st.integers(1, 16),
    max_new_tokens=st.sampled_from([1, 10, 100, 500]),
    engines=st.integers(1, 20),
)
@settings(max_examples=300)
def test_engines_are_idle_only_if_there_are_fewer_responses(
    tokens: list[int], completions: int, max_new_tokens: int, engines: int
) -> None:
    """In the end, one more cut of the largest piece of the longest share would not shorten that share."""
    of_batch, sampling = prompts(*tokens), Sampling(completions, 1.0, max_new_tokens, seed=0)
    shares = deal(of_batch, sampling, engines)
    assert sum(map(bool, shares)) == min(engines, len(tokens) * completions)
    assert sum(len(share) for share in shares) >= len(tokens)

    def length(piece: tuple[int, int]) -> int:
        prompt_tokens, count = piece
        return prompt_tokens + count * max_new_tokens

    def longest_first(pieces: list[tuple[int, int]]) -> list[int]:
        loads = [0] * engines
        for piece in sorted(pieces, key=length, reverse=True):
            loads[loads.index(min(loads))] += length(piece)
        return sorted(loads, reverse=True)

    by_share = [[(len(p.prompt.token_ids), p.completions) for p in share] for share in shares]
    loads = sorted((sum(map(length, share)) for share in by_share), reverse=True)
    pieces = [piece for share in by_share for piece in share]
    assert loads == longest_first(pieces)
    longest = max(by_share, key=lambda share: sum(map(length, share)))
    prompt_tokens, count = max(longest, key=lambda piece: piece[1], default=(0, 0))
    if count > 1:
        pieces.remove((prompt_tokens, count))
        finer = [*pieces, (prompt_tokens, count // 2), (prompt_tokens, count - count // 2)]
        assert longest_first(finer) >= loads
