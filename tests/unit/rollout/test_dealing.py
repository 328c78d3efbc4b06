from collections import Counter
from dataclasses import replace

import pytest

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
