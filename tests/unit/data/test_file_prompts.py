"""The order of questions from files: fixed, endless, every row in its turn."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral_system.data.file_prompts import Mix


def slow_mix(sizes: list[int], weights: list[float], passes: int) -> list[Counter[tuple[int, int]]]:
    """Return what each pass holds, in any order: the next `weight · size` of every source's own sequence."""
    found, taken = [], [0] * len(sizes)
    for number in range(1, passes + 1):
        of_pass: Counter[tuple[int, int]] = Counter()
        for source, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
            while taken[source] + 1 <= number * size * weight:
                of_pass[source, taken[source]] += 1
                taken[source] += 1
        found.append(of_pass)
    return found


@given(
    st.lists(st.tuples(st.integers(1, 7), st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0])), min_size=1, max_size=3),
    st.integers(0, 5),
)
def test_every_pass_holds_its_share_of_every_source(sources: list[tuple[int, float]], seed: int) -> None:
    sizes, weights = [size for size, _ in sources], [weight for _, weight in sources]
    mix, expected = Mix(sizes, weights, seed), slow_mix(sizes, weights, 5)
    at = 0
    for number, of_pass in enumerate(expected):
        assert mix.start(number) == at
        assert Counter(mix.draw(at + i) for i in range(of_pass.total())) == of_pass
        at += of_pass.total()


def test_a_draw_depends_on_the_seed_and_the_index_alone() -> None:
    mix = Mix([5, 3], [1.0, 2.0], seed=1)
    forward = [mix.draw(i) for i in range(60)]
    assert [Mix([5, 3], [1.0, 2.0], seed=1).draw(i) for i in reversed(range(60))] == forward[::-1]
    assert [Mix([5, 3], [1.0, 2.0], seed=2).draw(i) for i in range(60)] != forward


def test_one_source_comes_whole_before_it_comes_again() -> None:
    mix = Mix([10], [1.0], seed=0)
    for number in range(3):
        assert sorted(position for _, position in map(mix.draw, range(10 * number, 10 * number + 10))) == list(
            range(10 * number, 10 * number + 10)
        )


@pytest.mark.parametrize("index", [0, 10**6, 10**9 + 7])
def test_far_away_is_as_near(index: int) -> None:
    assert Mix([1000, 10], [1.0, 0.1], seed=0).draw(index)[0] in (0, 1)
