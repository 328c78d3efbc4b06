"""What a person sees while a stage runs, and where its time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from ral_system.config.choices import STAGE_TITLES

_SHOWN = {
    "eval/accuracy": "accuracy",
    "reward/total": "reward",
    "supervised/loss": "loss",
    "held_out/token_accuracy": "held-out token accuracy",
    "policy/kl": "KL",
    "gate/log_prob_diff_max": "max |Δ log-prob|",
    "synthesis/accepted": "accepted",
}
_PAUSE_S = (5.0, 60.0)
"""Minimum and maximum seconds between lines without a terminal."""


class PhaseTimer:
    """Wall time per named phase. A phase inside another counts for itself only, so phases add up to the time spent."""

    def __init__(
        self,
        on_phase: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        on_end: Callable[[str, float], None] = lambda name, seconds: None,
    ) -> None:
        self._on_phase, self._clock, self._on_end = on_phase, clock, on_end
        self._open: list[tuple[str, float]] = []  # name, clock at which it last began to run
        self._current: dict[str, float] = {}
        self._totals: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block, however it ends."""
        self._pause()
        self._open.append((name, self._clock()))
        self._announce(name)
        try:
            yield
        finally:
            self._pause()
            self._open.pop()
            if self._open:
                outer = self._open[-1][0]
                self._open[-1] = (outer, self._clock())
                self._announce(outer)

    def drain(self) -> dict[str, float]:
        """Seconds since the last drain, `{"time/rollout_s": 3.1, …}`, and start over."""
        current, self._current = self._current, {}
        return {f"time/{name}_s": seconds for name, seconds in current.items()}

    def totals(self) -> dict[str, float]:
        """Seconds since the start by phase, `{"rollout": 61.0, …}`; drains do not reset it."""
        return dict(self._totals)

    def resume(self, totals: Mapping[str, float]) -> None:
        """Count on from the totals of earlier sessions."""
        for name, seconds in totals.items():
            self._totals[name] = self._totals.get(name, 0.0) + seconds

    def _pause(self) -> None:
        if not self._open:
            return
        name, since = self._open[-1]
        spent = self._clock() - since
        for book in (self._current, self._totals):
            book[name] = book.get(name, 0.0) + spent
        self._on_end(name, spent)

    def _announce(self, name: str) -> None:
        if self._on_phase is not None:
            self._on_phase(name)


class StageProgress:
    """A bar with the newest numbers on a terminal; anywhere else a plain line every few seconds to a minute. Writes to
    stderr.

    Example: `with StageProgress("rl", total=20) as progress: …; progress.update(step, metrics)`
    """

    def __init__(
        self,
        stage: str,
        total: int,
        start: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._total, self._start = STAGE_TITLES.get(stage, stage), total, start
        self._every = max(1, total // 20)
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._latest: dict[str, float] = {}
        self._warned: set[str] = set()
        self._step, self._phase = start, ""
        self._began = self._said = clock()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def resume(self, step: int) -> None:
        """Start from `step` instead; call before entering."""
        self._start = self._step = step

    def __enter__(self) -> StageProgress:
        self._began = self._clock()
        if self._console.is_terminal:
            # The numbers take the room that the rest leaves, and are cut to it.
            numbers = Column(ratio=1, no_wrap=True, overflow="ellipsis")
            self._bar = Progress(
                TextColumn("[bold]{task.description}[/bold]"),
                BarColumn(bar_width=24 if self._console.width >= 120 else 8),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[numbers]}", style="cyan", markup=False, table_column=numbers),
                TextColumn("{task.fields[phase]}", style="dim", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                refresh_per_second=2,
                expand=True,
                get_time=self._clock,
            )
            self._task = self._bar.add_task(
                self._title, total=self._total, completed=self._start, numbers="", phase="starting"
            )
            self._bar.start()
        else:
            where = f"resumed at step {self._start}" if self._start else "step 0"
            self._say(f"{self._title}: {where} of {self._total}")
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.update(self._task, phase="")
            self._bar.stop()
        else:
            where = f"{'stopped' if error else 'ended'} at step {self._step} of {self._total}"
            self._say(f"{self._title}: {where}{self._numbers(' · ')}, {_duration(self._clock() - self._began)}")

    def phase(self, name: str) -> None:
        """Show what is going on now. Made to be a `PhaseTimer`'s `on_phase`."""
        self._phase = name
        if self._bar is not None:
            self._bar.update(self._task, phase=name)
        elif not self._console.is_terminal and self._clock() - self._said >= _PAUSE_S[1]:
            self._say(f"{self._line()}; now: {name}")

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` steps are done; show the newest value of each key metric."""
        fresh = {name: metrics[name] for name in _SHOWN if name in metrics}
        self._step = step
        self._latest.update(fresh)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=self._numbers())
            return
        notable = step % self._every == 0 or "eval/accuracy" in fresh
        if self._clock() - self._said >= _PAUSE_S[0 if notable else 1]:
            self._say(self._line())

    def say(self, message: str) -> None:
        """Print a line that stays, headed by the stage's name."""
        self._say(f"{self._title}: {message}")

    def warn(self, message: str) -> None:
        """Print a line that stays, once per text up to its first number, so a lasting alarm is shown once."""
        about = message.split(" is ")[0]
        if about not in self._warned:
            self._warned.add(about)
            self._say(f"warning: {message}")

    def _numbers(self, before: str = "") -> str:
        text = ", ".join(f"{label} {_short(self._latest[key])}" for key, label in _SHOWN.items() if key in self._latest)
        return before + text if text else ""

    def _line(self) -> str:
        elapsed = self._clock() - self._began
        line = f"{self._title}: step {self._step}/{self._total}{self._numbers(' · ')}, {_duration(elapsed)}"
        done = self._step - self._start
        if done <= 0 or self._step >= self._total:
            return line
        return f"{line}, about {_duration(elapsed / done * (self._total - self._step))} left"

    def _say(self, line: str) -> None:
        self._said = self._clock()
        stamp = "" if self._console.is_terminal else f"{datetime.now():%H:%M:%S} "
        self._console.print(stamp + line, markup=False, highlight=False, soft_wrap=True)


def _short(value: float) -> str:
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.3f}"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"
