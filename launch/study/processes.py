"""The processes of a study: each run once those that it needs have ended, some at a time."""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ral_system.errors import RalError
from ral_system.launch.study.files import COMMANDS, Run

_POLL_S = 0.1
_LINES_SHOWN = 15


class RunError(RalError):
    """Failure of a run; the study ends with its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def run_all(
    runs: Sequence[Run], folder: Path, jobs: int = 1, *, dry_run: bool = False, limit_s: float = math.inf
) -> list[str]:
    """Run every command that is not complete, `jobs` at a time, and return the names of those that failed.

    What goes on from a failed arm is skipped. After `limit_s` seconds what runs is asked to save its work and end, and
    nothing more is started. Raises RunError at once where a run that prepares or concludes fails, or
    any with wrong input (exit code 2), which is likely to be wrong for the others as well.
    """
    if dry_run:
        for number, run in enumerate(runs, 1):
            print(f"[{number}/{len(runs)}] {shlex.join(run.command)}", flush=True)
        return []
    schedule = _Schedule(runs, folder, jobs, time.monotonic() + limit_s)
    before = signal.signal(signal.SIGTERM, lambda *_: schedule.terminate())
    try:
        schedule.run()
    except KeyboardInterrupt:  # which a terminal also sends to the commands; they may have work to save
        schedule.wait()
        raise
    except RunError:
        schedule.terminate()
        schedule.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return schedule.failed


@dataclass
class _Started:
    run: Run
    child: subprocess.Popen[bytes]
    since: float
    log: Path | None


@dataclass
class _Schedule:
    runs: Sequence[Run]
    folder: Path
    jobs: int
    until: float
    """When to end, by the monotonic clock."""
    failed: list[str] = field(default_factory=list)
    _ended: set[str] = field(default_factory=set)
    _started: list[_Started] = field(default_factory=list)
    _seconds: list[float] = field(default_factory=list)
    """What each finished run took."""
    _stopping: bool = False

    def run(self) -> None:
        waiting = list(self.runs)
        while waiting or self._started:
            if self._stopping:
                raise KeyboardInterrupt
            if time.monotonic() > self.until:
                self.terminate()
                self.wait()
                left = len(waiting) + sum(started.child.returncode != 0 for started in self._started)
                print(f"out of time with {left} of {len(self.runs)} runs to go", file=sys.stderr, flush=True)
                return
            for run in [run for run in waiting if run.after <= self._ended]:
                if len(self._started) < self.jobs:
                    waiting.remove(run)
                    self._begin(run)
            for started in [started for started in self._started if started.child.poll() is not None]:
                self._started.remove(started)
                self._end(started, left=len(waiting))
            time.sleep(_POLL_S if self._started else 0)

    def terminate(self) -> None:
        """Ask what runs to save its work and end, and start nothing more."""
        self._stopping = True
        for started in self._started:
            started.child.terminate()

    def wait(self) -> None:
        """Wait for what runs, whatever interrupts."""
        while any(started.child.poll() is None for started in self._started):
            try:
                time.sleep(_POLL_S)
            except KeyboardInterrupt:
                continue
        for started in self._started:
            if started.child.returncode == 0:
                started.run.note_complete()

    def _begin(self, run: Run) -> None:
        number = self.runs.index(run) + 1
        if lost := [name for name in self.failed if run.goes_on_from(self.folder / name)]:
            print(f"{run.name} is skipped: it starts from {lost[0]}, which failed", file=sys.stderr, flush=True)
            self.failed.append(run.name)
            self._ended.add(run.name)
            return
        if run.complete():
            self._ended.add(run.name)
            return
        print(f"[{number}/{len(self.runs)}] {shlex.join(run.command)}", flush=True)
        log = self.folder / "logs" / f"{run.name}.log" if self.jobs > 1 else None
        self._started.append(_Started(run, _popen(run, log), time.monotonic(), log))

    def _end(self, started: _Started, left: int) -> None:
        run, code = started.run, started.child.returncode
        if code in (130, -signal.SIGINT, -signal.SIGTERM):  # stopped from outside: the others are not to go on
            self.terminate()
            raise KeyboardInterrupt
        self._ended.add(run.name)
        if code == 0:
            run.note_complete()
            self._say_done(started, left)
            return
        if started.log is not None:
            print(*_last_lines(started.log), sep="\n", file=sys.stderr, flush=True)
        where = "its output above" if started.log is None else f"{started.log}"
        error = RunError(f"{run.name} ended with exit code {code}; see {where}", code)
        if code == 2 or (run.arm is None and run.evaluates is None):
            raise error
        print(f"{error}; the study continues without it", file=sys.stderr, flush=True)
        self.failed.append(run.name)

    def _say_done(self, started: _Started, left: int) -> None:
        took = time.monotonic() - started.since
        self._seconds.append(took)
        mean = sum(self._seconds) / len(self._seconds)
        under_way = sum(max(mean - (time.monotonic() - other.since), 0.0) for other in self._started)
        minutes = (left * mean + under_way) / self.jobs / 60
        rest = f"; {left} to start, about {minutes:.0f} min left" if left else ""
        print(f"{started.run.name} took {took:.0f} s{rest}", flush=True)


def _popen(run: Run, log: Path | None) -> subprocess.Popen[bytes]:
    """Start a run, which saves its work and ends if this process is killed."""
    name = run.command[0]
    module, function = COMMANDS[name].split(":")
    ends = f"import os, signal, ral_system.subprocesses as s; s.die_with({os.getpid()}, signal.SIGTERM)"
    entry = f"{ends}; import sys; from {module} import {function} as run; sys.argv[0] = {name!r}; run()"
    command = [sys.executable, "-c", entry, *run.command[1:]]
    if log is None:
        return subprocess.Popen(command)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def _last_lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_SHOWN:]
