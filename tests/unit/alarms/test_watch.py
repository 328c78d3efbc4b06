"""Alarms over constructed runs: one for each published failure, when they ring, and that checkpoints continue them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ral_system.alarms.known import ALARMS
from ral_system.alarms.watch import Alarms, growth
from ral_system.config.commands import TrainConfig
from ral_system.controller.judging import rollout_metrics
from ral_system.training.gradient_share import hold
from ral_system.types import Rollout
from tests.unit.controller.graded import LENGTHS, WEIGHTS, group, parts

RIGHT, STYLE = (1.0, 0.0, 1.0, 0.0), (0.2,) * 4
SAID = "The red cube is left of the green sphere."
CALM = {"policy/entropy": 1.0, "attention/entropy": 3.0}

Step = tuple[list[Rollout], dict[str, float]]


def step(
    right: tuple[float, ...] = RIGHT, style: tuple[float, ...] = STYLE, extra: dict[str, float] = CALM, **changes: Any
) -> Step:
    """Four groups that differ in correctness, well formatted, with equal style, and what an update measured."""
    return [r for i in range(4) for r in group(i, parts(right, style), **changes)], extra


def mixed(count: int, right: tuple[float, ...], style: tuple[float, ...]) -> Step:
    """`count` of the four groups are as said, the others healthy."""
    odd = [r for i in range(count) for r in group(i, parts(right, style))]
    return [*odd, *(r for i in range(count, 4) for r in group(i, parts(RIGHT, STYLE)))], CALM


def play(alarms: Alarms, steps: list[Step]) -> tuple[list[str], list[dict[str, float]]]:
    """Lines and metrics of steps that are checked as the stage does."""
    lines, logged = [], []
    for rollouts, extra in steps:
        metrics = {**rollout_metrics(rollouts), **extra}
        lines += alarms.check(rollouts, metrics)
        logged.append(metrics)
    return lines, logged


CLOSED = "<think> it is red </think> <answer> red </answer>"
OPEN = ["<answer> red", "red", "<answer> red </answer> <answer> blue </answer>"]
CUT_OPEN = ["<think> it is", CLOSED, CLOSED, CLOSED]


def seen(gap: float) -> dict[str, float]:
    """Return the metrics of an update and an evaluation."""
    return CALM | {"eval/blind_gap": gap}


def held(updates: int) -> Step:
    """Return a step whose attention term was brought to a share of 0.2 in so many of four updates."""
    share, factor = 0.2 * updates / 4, 1.0 + 500 * updates / 4
    return step(extra=CALM | {"attention/gradient_share": share, "attention/gradient_factor": factor})


CUT_MORE = [step(cut=0), *[step(cut=1)] * 5]
FAILURES: dict[str, tuple[set[str], list[Step]]] = {
    "a healthy run": (set(), [step()] * 6),
    "half of the groups differ in style alone": ({"aux_only"}, [mixed(2, (1.0,) * 4, (0.3, 0.1, 0.1, 0.3))] * 6),
    "one outlier of a tiny value": ({"amplification"}, [mixed(1, (1.0,) * 4, (0.04, 0.0, 0.0, 0.0))] * 6),
    "style outweighs correctness": ({"part_share"}, [step(style=(5.0, 0.0, 0.0, 5.0))] * 6),
    "style is paid for length": ({"length_corr"}, [step(style=(0.1, 0.1, 0.3, 0.3))] * 6),
    "style is paid for pruning": ({"length_corr"}, [step(style=(0.3, 0.3, 0.1, 0.1))] * 6),
    "length creeps up": ({"length_drift"}, [step(lengths=[n + 2 * i for n in LENGTHS]) for i in range(6)]),
    "right and wrong responses look alike": ({"contrast"}, [step(extra=CALM | {"attention/contrast": 1.05})] * 6),
    "right and wrong responses look elsewhere": (set(), [step(extra=CALM | {"attention/contrast": 1.6})] * 6),
    "sentences are repeated": ({"duplicates"}, [step(texts=[f"{SAID} {SAID}"] * 4)] * 6),
    "responses are cut from the start": ({"truncation"}, [step(cut=1)] * 6),
    "more responses are cut": ({"truncation"}, CUT_MORE),  # three times none is not a limit
    "entropy collapses": ({"entropy"}, [step(), *[step(extra={**CALM, "policy/entropy": 0.4})] * 5]),
    "style runs away at flat accuracy": ({"aux_runaway"}, [step(), *[step(style=(0.6,) * 4)] * 5]),
    "style runs away, starting from nothing": (
        {"aux_runaway"},
        [step(style=(0.0,) * 4, weights=WEIGHTS), *[step(style=(0.6,) * 4)] * 5],
    ),
    "style grows with accuracy": (set(), [step(), *[step((1.0, 0.0, 1.0, 1.0), (0.6,) * 4)] * 5]),
    "one response has most of an update": (
        {"advantage_factor"},
        [step(extra=CALM | {"perception/advantage_factor_max": 6.4})] * 6,
    ),
    "pictures change more than can be": ({"perception_clamped"}, [step(extra=CALM | {"perception/clamped": 0.2})] * 6),
    "answers are no longer closed": ({"unclosed"}, [step(texts=[CLOSED] * 4), *[step(texts=[CLOSED, *OPEN])] * 5]),
    "answers become closed": (set(), [step(texts=[CLOSED, *OPEN]), *[step(texts=[CLOSED] * 4)] * 5]),
    "cut answers are not closed": ({"truncation"}, [step(texts=[CLOSED] * 4), *[step(texts=CUT_OPEN, cut=1)] * 5]),
    "style is paid and pictures add nothing": (
        {"blind_gap", "aux_runaway"},
        [step(extra=seen(0.3)), *[step(style=(0.6,) * 4, extra=seen(0.32))] * 5],
    ),
    "style is paid for what makes pictures matter": (
        {"aux_runaway"},
        [step(extra=seen(0.3)), *[step(style=(0.6,) * 4, extra=seen(0.4))] * 5],
    ),
    "attention collapses": ({"attention_entropy"}, [step(), *[step(extra={**CALM, "attention/entropy": 1.4})] * 5]),
    "attention has most of the gradient": (
        {"attention_gradient_share"},
        [step(extra={**CALM, "attention/gradient_share": 0.6})] * 6,
    ),
    "attention's share is capped": (
        set(),
        [step(extra={**CALM, "attention/gradient_share": 0.6, "attention/gradient_factor": 0.1})] * 6,
    ),
    "attention has hardly any gradient": (  # RAL's term at weight 1
        {"attention_share_low"},
        [step(extra={**CALM, "attention/gradient_share": 0.005})] * 6,
    ),
    "attention's share is held in one update of four": ({"attention_share_of_target"}, [held(1)] * 6),
    "attention's share is held, and the token loss has no gradient": (
        {"attention_share_of_target"},
        [step(extra=CALM | {"attention/gradient_share": 0.0, "attention/gradient_factor": 0.0})] * 6,
    ),
    "attention's share is held but in the first update": (set(), [held(3)] * 6),
}
TARGET = 0.2
"""What shares are held at in the cases that say so."""


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_rings_its_alarm_and_no_other(make_config: Callable[..., TrainConfig], failure: str) -> None:
    expected, steps = FAILURES[failure]
    target = TARGET if "is held" in failure else None
    config = make_config("alarms.consecutive=3").alarms
    lines, logged = play(Alarms(config, WEIGHTS, compares_looks=True, target_share=target), steps)
    assert {line.split(":")[0].removeprefix("alarm ") for line in lines} == expected
    assert len(lines) == len(expected)
    assert {name.removeprefix("alarm/") for name, value in logged[-1].items() if value and "alarm/" in name} == expected
    assert {name for name in logged[0] if name.startswith("alarm/")} == {f"alarm/{alarm.name}" for alarm in ALARMS}


def test_every_alarm_has_its_failure() -> None:
    rung = set().union(*(expected for expected, _ in FAILURES.values()))
    assert rung | {"truncation_growth"} == {alarm.name for alarm in ALARMS}  # which has a test below


def test_cut_responses_are_compared_with_the_first_steps(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config("alarms.consecutive=1", "alarms.truncation=null").alarms
    lines, logged = play(Alarms(config, WEIGHTS), [step(cut=1), step(cut=3), step(cut=4)])
    assert [m["health/truncation_growth"] for m in logged] == [1.0, 3.0, 4.0]
    assert len(lines) == 1 and lines[0].startswith(
        "alarm truncation_growth: the share of cut responses relative to the first step's is 4, above "
        "alarms.truncation_growth=3 for 1 step; raise rollout.max_new_tokens"
    )
    assert all("alarm/truncation" not in metrics for metrics in logged)


def entropies(*values: float | None) -> list[Step]:
    return [step(extra={} if v is None else {"policy/entropy": v}) for v in values]


def test_it_rings_once_after_steps_in_a_row_and_again_after_a_quiet_one(
    make_config: Callable[..., TrainConfig],
) -> None:
    alarms = Alarms(make_config("alarms.consecutive=2").alarms, WEIGHTS)
    lines, logged = play(alarms, entropies(1.0, 0.4, 0.6, 0.4, 0.3, 0.2, 0.5, 0.4, 0.4))
    assert [m["alarm/entropy"] for m in logged] == [0, 0, 0, 0, 1, 1, 0, 0, 1]  # at the limit it is quiet
    assert [line.split(";")[0] for line in lines] == [
        f"alarm entropy: token entropy relative to the first step's is {value}, below alarms.entropy=0.5 for 2 steps"
        for value in (0.3, 0.4)
    ]


def test_a_step_without_the_figure_changes_nothing(make_config: Callable[..., TrainConfig]) -> None:
    alarms = Alarms(make_config("alarms.consecutive=2").alarms, WEIGHTS)
    _, logged = play(alarms, entropies(1.0, 0.4, None, 0.4, None, 0.9, None))
    assert [m["alarm/entropy"] for m in logged] == [0, 0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(("share", "name"), [(0.005, "attention_share_low"), (0.6, "attention_gradient_share")])
@pytest.mark.parametrize(("consecutive", "first"), [(20, 21), (2, 11)])
def test_three_measurements_ring_alarms_of_a_figure_measured_seldom(
    make_config: Callable[..., TrainConfig], share: float, name: str, consecutive: int, first: int
) -> None:
    """One measurement every 10 steps, as by default."""
    measured = step(extra=CALM | {"attention/gradient_share": share})
    alarms = Alarms(make_config(f"alarms.consecutive={consecutive}").alarms, WEIGHTS)
    lines, logged = play(alarms, [step() if i % 10 else measured for i in range(30)])
    assert [i + 1 for i, metrics in enumerate(logged) if metrics[f"alarm/{name}"]] == list(range(first, 31))
    assert len(lines) == 1 and f"for {min(3, consecutive)} measurements; " in lines[0]


def test_three_evaluations_are_not_enough(make_config: Callable[..., TrainConfig]) -> None:
    alarms = Alarms(make_config().alarms, WEIGHTS)
    lines, logged = play(alarms, [step(extra=seen(0.3)), *[step(style=(0.6,) * 4, extra=seen(0.3))] * 5])
    assert not lines and logged[-1]["health/blind_runaway"] > 0.6


def test_an_alarm_without_a_limit_is_off(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config("alarms.consecutive=1", "alarms.entropy=null").alarms
    ringing = {"beyond": {"entropy": 9}, "ringing": {"entropy": 0.1}}
    alarms = Alarms(config, WEIGHTS, ringing)
    lines, logged = play(alarms, entropies(1.0, 0.1))
    assert lines == [] and "alarm/entropy" not in logged[-1] and logged[-1]["health/entropy"] == 0.1
    assert (alarms.state()["beyond"], alarms.state()["ringing"]) == ({}, {})


RUN = [
    *entropies(0.9, 0.3, 0.3, 0.8),
    *[step(style=(0.6,) * 4, cut=1, lengths=[n + 3 for n in LENGTHS])] * 3,
    *entropies(0.1),
]


@pytest.mark.parametrize("cut", range(1, len(RUN)))
def test_a_continued_run_equals_an_uninterrupted_one(make_config: Callable[..., TrainConfig], cut: int) -> None:
    config = make_config("alarms.consecutive=2").alarms
    whole = play(Alarms(config, WEIGHTS), RUN)
    first = Alarms(config, WEIGHTS)
    before = play(first, RUN[:cut])
    after = play(Alarms(config, WEIGHTS, json.loads(json.dumps(first.state()))), RUN[cut:])
    assert (before[0] + after[0], before[1] + after[1]) == whole
    assert len(whole[0]) > 3


def test_fewer_steps_in_a_row_ring_in_a_continued_run(make_config: Callable[..., TrainConfig]) -> None:
    first = Alarms(make_config("alarms.consecutive=20").alarms, WEIGHTS)
    play(first, entropies(1.0, 0.1, 0.1, 0.1))
    lines, _ = play(Alarms(make_config("alarms.consecutive=2").alarms, WEIGHTS, first.state()), entropies(0.1, 0.1))
    assert len(lines) == 1 and "for 4 steps" in lines[0]


def test_it_stops_when_asked_to_and_says_how_to_go_on(make_config: Callable[..., TrainConfig]) -> None:
    collapse = entropies(1.0, 0.2)
    logs, stops = (Alarms(make_config("alarms.consecutive=1", f"alarms.action={a}").alarms, WEIGHTS)
                   for a in ("log", "stop"))  # fmt: skip
    play(logs, collapse)
    play(stops, collapse[:1])
    assert logs.stopping() is None and stops.stopping() is None
    play(stops, collapse[1:])
    message = stops.stopping()
    assert message is not None and "\n" not in message
    assert message.startswith("alarms.action=stop: alarm entropy: token entropy relative to the first step's is 0.2,")
    assert message.endswith("; to go on, add alarms.action=log or other limits")


@pytest.mark.parametrize(
    "failure",
    [
        "style outweighs correctness",
        "attention has hardly any gradient",
        "attention's share is held in one update of four",
    ],
)
def test_some_alarms_never_stop_a_run(make_config: Callable[..., TrainConfig], failure: str) -> None:
    config = make_config("alarms.consecutive=1", "alarms.action=stop").alarms
    alarms = Alarms(config, WEIGHTS, target_share=TARGET if "is held" in failure else None)
    (name,), steps = FAILURES[failure]
    _, logged = play(alarms, steps)
    assert logged[-1][f"alarm/{name}"] == 1 and alarms.stopping() is None


def test_a_share_below_its_target_has_two_causes_that_the_factor_tells_apart() -> None:
    """With the factors that `hold` gives: squared norms of the token loss and the term."""
    (alarm,) = (alarm for alarm in ALARMS if alarm.name == "attention_share_of_target")
    says = alarm.says(0.0, 0.4, 20)
    assert hold(torch.tensor([1.0, 0.0]), TARGET, "float32") == 1 and "where it is 1, the term's gradient is 0" in says
    assert hold(torch.tensor([0.0, 1.0]), TARGET, "float32") == 0 and "where it is 0, only the token loss" in says


def test_a_share_just_at_half_of_its_target_is_quiet(make_config: Callable[..., TrainConfig]) -> None:
    """RAL with two updates a step: the first has no share."""
    alarms = Alarms(make_config("alarms.consecutive=1").alarms, WEIGHTS, target_share=TARGET)
    lines, (metrics,) = play(alarms, [held(2)])
    assert not lines and metrics["health/attention_share_of_target"] == pytest.approx(0.5)
    assert "health/attention_gradient_share" not in metrics


def test_growth_by_hand() -> None:
    assert growth(0.16, 0.1) == pytest.approx(0.6)
    assert growth(0.24, 0.0, most=0.4) == pytest.approx(0.6)
    assert growth(0.0, 0.0) == growth(0.3, 0.0) == 0.0


def test_every_alarm_has_a_limit_a_metric_and_a_remedy_in_the_docs(make_config: Callable[..., TrainConfig]) -> None:
    limits = set(make_config().alarms.model_dump()) - {"consecutive", "action", "flat_accuracy"}
    assert {alarm.name for alarm in ALARMS} == limits
    measured = CALM | {"attention/gradient_share": 0.1, "attention/contrast": 2.0, "eval/blind_gap": 0.3}
    measured |= {"perception/advantage_factor_max": 1.2, "perception/clamped": 0.0}
    figures: set[str] = set()
    for target in (None, TARGET):
        alarms = Alarms(make_config().alarms, WEIGHTS, compares_looks=True, target_share=target)
        figures |= play(alarms, [step(extra=measured)])[1][0].keys()
    assert {alarm.figure for alarm in ALARMS} <= figures
    text = (Path(__file__).parents[3] / "docs" / "troubleshooting.md").read_text()
    first_cells = " ".join(re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", first_cells)) == limits


def test_contrast_is_watched_where_looks_are_compared_only(make_config: Callable[..., TrainConfig]) -> None:
    alarms = Alarms(make_config("alarms.consecutive=1").alarms, WEIGHTS)
    lines, (metrics,) = play(alarms, [step(extra=CALM | {"attention/contrast": 0.9})])
    assert not lines and "health/contrast" not in metrics


def test_pictures_are_compared_with_what_they_added_before_rl(make_config: Callable[..., TrainConfig]) -> None:
    """A step without an evaluation changes nothing, and a continued run knows the figure."""
    config = make_config("alarms.consecutive=2", "alarms.aux_runaway=null").alarms
    paid = {"style": (0.6,) * 4}
    steps = [step(), step(**paid, extra=seen(0.31)), step(**paid), step(**paid, extra=seen(0.3))]  # type: ignore[arg-type]
    alarms = Alarms(config, WEIGHTS, before={"eval/blind_gap": 0.28, "eval/accuracy": 0.7})
    lines, logged = play(alarms, steps)
    assert [m.get("health/blind_runaway") for m in logged] == [None, pytest.approx(0.75), None, pytest.approx(0.75)]
    assert [m["alarm/blind_gap"] for m in logged] == [0, 0, 0, 1]
    assert len(lines) == 1 and "above alarms.blind_gap=0.6 for 2 evaluations; lower the weight" in lines[0]
    later = Alarms(config, WEIGHTS, json.loads(json.dumps(alarms.state())), before={"eval/blind_gap": 0.0})
    _, (metrics,) = play(later, [step(**paid, extra=seen(0.5))])  # type: ignore[arg-type]
    assert metrics["health/blind_runaway"] == 0 == metrics["alarm/blind_gap"]
