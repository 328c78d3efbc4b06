from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from ral_system.observability.progress import PhaseTimer, StageProgress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_phases_add_up_and_drain() -> None:
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    for seconds in (1.0, 2.0):
        with timer.phase("rollout"):
            clock.now += seconds
    with timer.phase("update"):
        clock.now += 4
    assert timer.drain() == {"time/rollout_s": 3.0, "time/update_s": 4.0}
    assert timer.drain() == {}
    with timer.phase("update"):
        clock.now += 1
    assert timer.drain() == {"time/update_s": 1.0}
    assert timer.totals() == {"rollout": 3.0, "update": 5.0}
    timer.resume({"update": 10.0, "sync": 1.0})
    assert timer.totals() == {"rollout": 3.0, "update": 15.0, "sync": 1.0}
    assert timer.drain() == {}


def test_a_phase_inside_another_is_not_counted_twice() -> None:
    clock, seen = Clock(), []
    timer = PhaseTimer(on_phase=seen.append, clock=clock)
    with timer.phase("update"):
        clock.now += 1
        with timer.phase("publish"):
            clock.now += 10
        clock.now += 2
    assert timer.drain() == {"time/update_s": 3.0, "time/publish_s": 10.0}
    assert seen == ["update", "publish", "update"]


def test_a_phase_that_raises_is_timed_and_closed() -> None:
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    with pytest.raises(RuntimeError), timer.phase("reward"):
        clock.now += 2
        raise RuntimeError
    with timer.phase("update"):
        clock.now += 1
    assert timer.totals() == {"reward": 2.0, "update": 1.0}


METRICS = {
    "eval/accuracy": 0.875,
    "reward/total": 0.5,
    "policy/kl": 0.0002,
    "gate/log_prob_diff_max": 4.5e-6,
    "unknown/metric": 9.0,
}


class Shown:
    """A stage of RL that is shown, at some seconds per step."""

    def __init__(self, terminal: bool = False, width: int = 160, start: int = 0, total: int = 40) -> None:
        self.out, self.clock = io.StringIO(), Clock()
        console = Console(file=self.out, force_terminal=terminal, width=width, color_system=None)
        self.progress = StageProgress("rl", total=total, start=start, console=console, clock=self.clock)

    def steps(self, first: int, last: int, seconds: float, metrics: dict[str, float] = METRICS) -> None:
        for step in range(first, last + 1):
            self.progress.phase("rollout")
            self.clock.now += seconds
            self.progress.update(step, metrics)

    def lines(self) -> list[str]:
        """Return the lines without the time of day, with which each must begin."""
        stamped = [re.fullmatch(r"\d\d:\d\d:\d\d (.*)", line) for line in self.out.getvalue().splitlines()]
        assert all(stamped), self.out.getvalue()
        return [line[1] for line in stamped if line]


def test_without_a_terminal_plain_lines_with_the_time_of_day() -> None:
    shown = Shown()
    with shown.progress:
        shown.steps(1, 40, seconds=10, metrics={"reward/total": 0.5, "policy/kl": 0.0002, "unknown/metric": 9.0})
        shown.progress.update(40, {"eval/accuracy": 0.875})
    assert shown.lines()[:2] == [
        "RL: step 0 of 40",
        "RL: step 2/40 · reward 0.500, KL 2.0e-04, 20s, about 6m20s left",
    ]
    assert shown.lines()[-1] == "RL: ended at step 40 of 40 · accuracy 0.875, reward 0.500, KL 2.0e-04, 6m40s"
    assert "\x1b" not in shown.out.getvalue()


def test_no_minute_is_silent_in_a_long_stage() -> None:
    shown = Shown(total=6400)
    with shown.progress:
        shown.steps(1, 100, seconds=25, metrics={"reward/total": 0.5})
    assert len(shown.lines()) >= 100 * 25 / 75


def test_a_long_step_is_followed_by_phase() -> None:
    shown = Shown()
    with shown.progress:
        for _ in range(3):
            shown.clock.now += 200
            shown.progress.phase("update")
    assert shown.lines()[1:-1] == [f"RL: step 0/40, {spent}; now: update" for spent in ("3m20s", "6m40s", "10m00s")]


def test_quick_steps_do_not_flood_a_log() -> None:
    shown = Shown(total=20)
    with shown.progress:
        shown.steps(1, 20, seconds=0.5)
    assert len(shown.lines()) == 2 + 2


@pytest.mark.parametrize("width", [80, 110, 160])
def test_on_a_terminal_a_bar_that_cuts_nothing_but_the_numbers(width: int) -> None:
    shown = Shown(terminal=True, width=width, total=9999)
    with shown.progress as progress:
        shown.steps(1, 4000, seconds=2)
        progress.phase("checkpoint")
        assert progress._bar is not None
        progress._bar.refresh()
        text = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", shown.out.getvalue())
    line = re.split(r"[\r\n]", text)[-1]
    assert "4000/9999" in line and "accuracy 0.875" in line and "unknown" not in line
    assert re.search(r"checkpoint 2:13:20 left \d:\d\d:\d\d$", line), line
    assert len(line) <= width
    assert ("…" in line) == (width < 160)  # the numbers


def test_a_resumed_stage_says_where_it_goes_on() -> None:
    shown = Shown(total=16)
    shown.progress.resume(10)
    with pytest.raises(KeyboardInterrupt), shown.progress:
        shown.steps(11, 12, seconds=60, metrics={"held_out/token_accuracy": 0.25})
        raise KeyboardInterrupt
    assert shown.lines() == [
        "RL: resumed at step 10 of 16",
        "RL: step 11/16 · held-out token accuracy 0.250, 1m00s, about 5m00s left",
        "RL: step 12/16 · held-out token accuracy 0.250, 2m00s, about 4m00s left",
        "RL: stopped at step 12 of 16 · held-out token accuracy 0.250, 2m00s",
    ]


def test_a_warning_that_differs_in_its_numbers_alone_is_said_once() -> None:
    shown = Shown()
    with shown.progress as progress:
        progress.warn("the share of responses without a verdict is 50%")
        progress.warn("the share of responses without a verdict is 75%")
    assert shown.out.getvalue().count("warning:") == 1
