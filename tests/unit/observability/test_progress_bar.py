from __future__ import annotations

import io

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


def shown(terminal: bool, steps: int = 40) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=160, color_system=None)
    with StageProgress("rl", total=steps, console=console) as progress:
        for step in range(1, steps + 1):
            progress.phase("rollout")
            progress.update(step, {"reward/total": 0.5, "policy/kl": 0.0002, "unknown/metric": 9.0})
        progress.update(steps, {"eval/accuracy": 0.875})
    return out.getvalue()


def test_without_a_terminal_a_few_plain_lines() -> None:
    text = shown(terminal=False)
    lines = text.splitlines()
    assert "\x1b" not in text
    assert len(lines) <= 25
    assert lines[0] == "RL: step 0 of 40"
    assert lines[1].startswith("RL: step 2/40 · reward 0.500, KL 2.0e-04, ")
    assert "left" in lines[1]
    assert lines[-1].startswith("RL: ended at step 40 of 40 · accuracy 0.875, reward 0.500")


def test_on_a_terminal_a_bar_with_numbers_and_phase() -> None:
    text = shown(terminal=True)
    assert "40/40" in text
    assert "accuracy 0.875, reward 0.500" in text
    assert "unknown" not in text


def test_a_resumed_stage_starts_where_it_was() -> None:
    out = io.StringIO()
    with StageProgress("sft", total=10, start=7, console=Console(file=out, width=120)) as progress:
        progress.update(8, {"supervised/loss": 0.25})
    assert out.getvalue().startswith("cold start: step 7 of 10\ncold start: step 8/10 · loss 0.250")
