"""Figures of a step, by hand."""

import math

import pytest

from ral_system.alarms.health import amplification, duplicates, health, judged_groups, length_correlation, unclosed
from ral_system.algorithms.advantages import Advantage
from tests.unit.controller.graded import WEIGHTS, group, parts

PAIR = {"correctness": 1.0, "format": 0.1}


def pair(*values: tuple[float, float]) -> list[dict[str, float]]:
    return [{"correctness": right, "format": formatted} for right, formatted in values]


def test_shares_of_the_spread_by_hand() -> None:
    mixed = group(0, pair((1, 1), (0, 1), (1, 0), (0, 0)), weights=PAIR)  # r: 1.1, 0.1, 1, 0; Σ(r - 0.55)² = 1.01
    formats = group(1, pair((1, 1), (1, 0), (1, 1), (1, 0)), weights=PAIR)
    alike = group(2, pair(*[(1, 1)] * 4), weights=PAIR)
    found = health([*mixed, *formats, *alike], PAIR)
    assert found["health/part_share/correctness"] == pytest.approx((1 / 1.01 + 0) / 2)
    assert found["health/part_share/format"] == pytest.approx((0.01 / 1.01 + 1) / 2)
    assert found["health/aux_share"] == found["health/part_share/format"]
    assert found["health/aux_only"] == pytest.approx(1 / 3)
    assert found["health/aux_reward"] == pytest.approx(0.1 * 8 / 12)


def test_a_part_that_is_undefined_adds_nothing_and_has_no_length() -> None:
    of = [{"correctness": 1.0, "visual": 0.5}, {"correctness": 0.0}, {"correctness": 1.0, "visual": 0.7}]
    rollouts = group(0, of, weights={"correctness": 1.0, "visual": 1.0}, lengths=(4, 100, 6))
    found = health(rollouts, {"correctness": 1.0, "visual": 1.0})  # r: 1.5, 0, 1.7
    assert found["health/part_share/correctness"] + found["health/aux_share"] == pytest.approx(1)
    assert found["health/length_corr/visual"] == pytest.approx(1)  # the response of 100 tokens is left out


def test_penalties_share_the_spread_and_are_not_paid() -> None:
    weights = {"correctness": 1.0, "overlong": -1.0}
    of = [{"correctness": 1.0, "overlong": penalty} for penalty in (0.0, 0.5, 1.0)]
    found = health(group(0, of, weights=weights, lengths=(2, 4, 6)), weights)
    assert (found["health/aux_share"], found["health/length_corr/overlong"]) == (pytest.approx(1), pytest.approx(1))
    assert (found["health/length_corr"], found["health/aux_reward"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("advantage", "expected"), [("grpo", 252), ("dr_grpo", 1), ("rloo", 8 / 7), ("reinforce_plus_plus", 252)]
)
def test_one_outlier_of_eight_is_amplified_252_times(advantage: Advantage, expected: float) -> None:
    weights = {"correctness": 1.0, "style": 1.0}
    of = [{"correctness": 1.0, "style": 0.012 * (i == 3)} for i in range(8)]
    rollouts = group(0, of, weights=weights, advantage=advantage)
    assert amplification([rollouts]) == pytest.approx(expected, rel=1e-3)


def test_amplification_is_a_quantile_of_groups_without_right_and_wrong() -> None:
    def stretched(number: int, factor: float, right: float = 1.0) -> list:
        of = pair((1.0, 1.0), (right, 0.0))
        return [
            type(r)(r.prompt, r.completion, r.reward, factor * 0.05 * sign)
            for r, sign in zip(group(number, of, weights=PAIR), (1, -1), strict=True)
        ]

    groups = [stretched(i, factor) for i, factor in enumerate(range(1, 21))]
    assert amplification(groups) == pytest.approx(19)
    assert amplification(groups[:3]) == pytest.approx(3)
    assert amplification([*groups[:3], stretched(9, 500.0, right=0.0)]) == pytest.approx(3)
    assert amplification([]) == 0.0


def test_correlation_with_length_is_within_groups_and_pooled() -> None:
    def of(number: int, values: tuple[float, ...], lengths: tuple[int, ...]) -> list:
        return group(number, parts((1.0,) * len(values), values), lengths=lengths)

    assert length_correlation([of(0, (0.0, 1.0, 0.5), (1, 2, 3))], "style") == pytest.approx(0.5)
    apart = [of(0, (0.0, 1.0), (1, 3)), of(1, (0.0, 1.0), (101, 103))]
    assert length_correlation(apart, "style") == pytest.approx(1)
    against = [of(0, (0.0, 1.0), (1, 3)), of(1, (1.0, 0.0), (1, 3))]
    assert length_correlation(against, "style") == 0.0
    shorter = health(of(0, (1.0, 0.0), (1, 3)), WEIGHTS)
    assert (shorter["health/length_corr/style"], shorter["health/length_corr"]) == pytest.approx((-1, 1))


def test_sentences_are_duplicates_within_their_response() -> None:
    once = "The red cube is left of the green sphere."
    thought = f"<think> {once} {once}\nSo the answer is a cube, most likely. </think>"
    assert duplicates([thought]) == pytest.approx(1 / 3)
    assert duplicates([once, once]) == 0.0
    assert duplicates(["Yes. Yes. Yes.", ""]) == 0.0  # short ones do not count
    assert duplicates([f"{once}  {once.replace(' ', '  ')}"]) == 0.5  # spaces do not matter


def test_answers_are_closed_once() -> None:
    texts = ["<answer> a </answer>", "<answer> a", "a", "<answer> a </answer> <answer> b </answer>"]
    of = parts((1.0,) * 4, (0.2,) * 4)
    assert unclosed(group(0, of, texts=texts)) == 0.75
    assert unclosed(group(0, of, texts=texts[::-1], cut=3)) == 0  # the cut ones lack what they were about to say
    assert unclosed(group(0, of, texts=texts, cut=4)) == unclosed([]) == 0


@pytest.mark.parametrize(
    ("rollouts", "weights"),
    [
        pytest.param(group(0, [{"correctness": c} for c in (1.0, 0.0)]), {"correctness": 1.0}, id="one part"),
        pytest.param(group(0, parts((1.0,) * 4, (0.3,) * 4)), WEIGHTS, id="no spread"),
        pytest.param(group(0, parts((1.0,), (0.3,))), WEIGHTS, id="one response"),
        pytest.param(group(0, parts((1.0, 0.0), (0.0, 1.0)), lengths=(1, 1)), WEIGHTS, id="one token"),
        pytest.param(group(0, [None, None]), WEIGHTS, id="no verdicts"),
        pytest.param([*group(0, [None, parts((1.0,), (0.2,))[0]])], WEIGHTS, id="one verdict"),
        pytest.param(group(0, parts((1.0, 1.0), (0.0, 1e-9))), WEIGHTS, id="rounding"),
    ],
)
def test_where_nothing_differs_figures_are_zero_and_never_undefined(rollouts: list, weights: dict) -> None:
    found = health(rollouts, weights)
    assert all(math.isfinite(value) for value in found.values())
    shares = [value for name, value in found.items() if name.startswith("health/part_share/")]
    assert sum(shares) == pytest.approx(1) or shares == [0.0] * len(weights)
    assert found["health/length_corr"] == 0.0
    assert (found["health/aux_only"], found["health/amplification"]) == (0.0, 0.0)
    assert ("health/aux_reward" in found) == any(r.reward.parts for r in rollouts)


def test_only_groups_of_two_verdicts_count() -> None:
    late = group(0, [None, *parts((1.0, 0.0), (0.1, 0.2))])
    alone = group(1, [None, *parts((1.0,), (0.1,))])
    assert [[r.completion.index for r in of] for of in judged_groups([*late, *alone])] == [[1, 2]]
