"""Stacks of the threads of a process that does not answer, which it writes to its log at a signal.

The signal's handler is C code of faulthandler, which does not wait for Python's lock: C code may hold it.
"""

from __future__ import annotations

import faulthandler
import operator
import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

_SIGNAL = signal.SIGUSR2
_WRITE_S = 5.0
"""Time for all processes of a node to write their stacks."""
_QUIET_S = 0.2
"""A log that has not grown for so long has the whole of a stack."""
_PAUSE_S = 0.02
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')
_THREAD = "(most recent call first)"
"""At the beginning of each thread."""
_ACTORS = "/actors/"
_OWN = "/ral_system/"
_CALLERS = 2
"""Frames of this package that are shown besides the innermost one."""
_STATES = {
    "T": "it is stopped",
    "D": "it waits in the kernel and takes no signals, as when a network file system or a device does not answer",
}


def write_at_signal() -> None:
    """Make this process write the stacks of all its threads to its standard error when it gets the signal."""
    faulthandler.register(_SIGNAL, file=2, all_threads=True, chain=False)


def request_stacks(logs: Sequence[Path]) -> list[str]:
    """Make the processes of this machine that write these logs add their stacks; say for each log what they show.

    Those are the processes that called `write_at_signal` and whose standard error is the log: a process, and perhaps
    ranks that it started. Those of one log are asked one after another, because their lines would mix. All have 5 s.
    Finds nothing where there is no /proc.
    """
    writers = [_writers(log) for log in logs]
    began = list(map(_size, logs))
    deadline = time.monotonic() + _WRITE_S
    for turn in zip_longest(*writers):
        _ask([(pid, log) for pid, log in zip(turn, logs, strict=True) if pid is not None], deadline)
    return [_said(log, pids, size) for log, pids, size in zip(logs, writers, began, strict=True)]


def position(stacks: str) -> str:
    """Say where a process is, given its stacks in faulthandler's words.

    Example: `it is in open (Image.py:3505), from pixels (store.py:151), from fit (learner_rank.py:99)`
    """
    threads = [_FRAME.findall(thread) for thread in stacks.split(_THREAD)]
    calls = [frames for frames in threads if any(_ACTORS in path for path, _, _ in frames)]
    return f"it is in {' and in '.join(map(_chain, calls))}" if calls else "no method of it is running"


def _chain(frames: Sequence[tuple[str, str, str]]) -> str:
    innermost, *outer = frames
    own = [frame for frame in outer if _OWN in frame[0] and not frame[0].endswith(f"{_ACTORS}process.py")]
    shown = (f"{function} ({Path(path).name}:{line})" for path, line, function in (innermost, *own[:_CALLERS]))
    return ", from ".join(shown)


def _writers(log: Path) -> list[int]:
    """Return the processes that write their stacks to this log, the oldest first."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if (process / "fd/2").samefile(log) and _handles_signal(process):
                found.append((int((process / "stat").read_text().rpartition(")")[2].split()[19]), int(process.name)))
    return [pid for _, pid in sorted(found)]


def _handles_signal(process: Path) -> bool:
    """Return whether the process handles the signal; otherwise it would end by it."""
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", (process / "status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> (_SIGNAL - 1) & 1)


def _ask(processes: Sequence[tuple[int, Path]], deadline: float) -> None:
    """Return when each process has added to its log, and stopped adding."""
    before = sizes = [_size(log) for _, log in processes]
    for pid, _ in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, _SIGNAL)
    changed = time.monotonic()
    while (now := time.monotonic()) < deadline:
        latest = [_size(log) for _, log in processes]
        if latest != sizes:
            sizes, changed = latest, now
        elif now - changed > _QUIET_S and all(map(operator.gt, sizes, before)):
            return
        time.sleep(_PAUSE_S)


def _said(log: Path, pids: Sequence[int], began: int) -> str:
    if not pids:
        return "its process was not found"
    with log.open("rb") as file:
        file.seek(began)
        stacks = file.read().decode(errors="replace")
    if _FRAME.search(stacks):
        return f"{position(stacks)}; the stacks of its threads are at the end of {log}"
    with suppress(OSError):
        state = Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[0]
        return (
            f"{_STATES.get(state, 'it takes no signals')}, and wrote no stack within {_WRITE_S:g} s; its log is {log}"
        )
    return f"its process ended when it was asked for its stack; its log is {log}"


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
