"""The end of a stage's processes. Each carries a mark in its environment, as all do that it starts, so those are found
that its own end leaves behind.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_VARIABLE = "RAL_PROCESS_OF"
_PF_EXITING = 0x4
_UNKNOWN = "an unknown owner"
"""Owner of a process without an environment, which is about to end: perhaps the stage's, perhaps not."""
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Leftover:
    """A process that had to be killed. `alive`: it has not even ended then.

    Example: `Leftover(4711, "rollout 0", "VLLM::Worker_TP1", alive=False)`
    """

    pid: int
    owner: str
    command: str
    alive: bool


def mark(stage: str, owner: str) -> dict[str, str]:
    """Return the environment variable that marks a process as `owner`'s, for example `rollout 0`'s."""
    return {_VARIABLE: f"{stage}/{owner}"}


def end_marked(stage: str, grace_s: float, kill_s: float) -> list[Leftover]:
    """Wait until no process of this machine has the stage's mark; return those that did not end by themselves.

    What is alive after `grace_s` is killed, and waited for up to `kill_s`. A process has ended when all its threads
    have: only then is its memory free, also on a GPU. Finds nothing where there is no /proc.
    """
    deadline = time.monotonic() + grace_s
    while (alive := _alive(stage)) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    left: dict[int, Leftover] = {}
    deadline = time.monotonic() + kill_s
    while alive and time.monotonic() < deadline:
        for pid, process in alive.items():
            if process.owner != _UNKNOWN:
                left[pid] = process
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)
        alive = _alive(stage)
    left |= alive
    return [Leftover(each.pid, each.owner, each.command, alive=pid in alive) for pid, each in left.items()]


def _alive(stage: str) -> dict[int, Leftover]:
    start, found = f"{_VARIABLE}={stage}/".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if (owner := _owner(folder, start)) is not None:
                pid, command = int(folder.name), (folder / "comm").read_text().strip()
                found[pid] = Leftover(pid, owner, command, alive=True)
    return found


def _owner(process: Path, start: bytes) -> str | None:
    """Return whose process it is by its mark, None if it has none or has ended.

    One that is about to end has lost its environment, but not yet its files, and with them a GPU's memory.
    """
    ending = False
    for thread in (process / "task").iterdir():
        with suppress(ProcessLookupError):
            if environment := (thread / "environ").read_bytes():
                marks = (v.removeprefix(start) for v in environment.split(b"\0") if v.startswith(start))
                return next((owner.decode() for owner in marks), None)
        state, *_, flags = (thread / "stat").read_text().rpartition(")")[2].split()[:7]
        ending |= state not in "ZX" and bool(int(flags) & _PF_EXITING)
    return _UNKNOWN if ending else None
