"""Limits of processes that handle outside data: they end with their parent, and their memory is bounded."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ROUNDS = 50


def limit_memory(limit: int) -> None:
    """Limit this process's address space to so many bytes; an allocation beyond it raises MemoryError."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def die_with(parent: int) -> None:
    """Have the kernel kill this process with its parent: the end of input alone is not seen by one that hangs."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the call above
        os._exit(1)


def adopt_orphans() -> None:
    """Have what this process's descendants leave behind become its children, so `kill_descendants` finds them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_descendants(pid: int) -> None:
    """Stop a process and kill all its descendants, whatever their sessions. It stays stopped: the caller kills it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    for _ in range(_ROUNDS):  # one that is killed may just have started another
        found = _descendants(pid)
        if not found:
            return
        for each in found:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        time.sleep(0.01)


def _descendants(pid: int) -> list[int]:
    """Return the running descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = children.get(pid, [])
    for each in found:  # which grows
        found.extend(children.get(each, []))
    return found
