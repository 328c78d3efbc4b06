"""Limits of processes that handle outside data: they end with their parent, with all that they have started, and their
memory is bounded.
"""

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
_GUARDED = {signal.SIGTERM, signal.SIGCHLD}
"""Signals that a guard waits for: the end of its parent, and of a child."""


def limit_memory(limit: int) -> None:
    """Limit this process's address space to so many bytes; an allocation beyond it raises MemoryError."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def die_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send a signal to this process when the thread of its parent that started it ends.

    The end of input alone is not seen by a process that hangs.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # the parent died before the call above
        os._exit(1)


def fork_guarded(parent: int) -> None:
    """Fork twice and return only in the last process, which ends with `parent` and takes all that it has started along.

    The caller and its child stay as guards, and exit with the code of the new process. The second acts when the first
    is killed: Ray kills the children of a worker process that ends, but not their children. Off Linux, nothing is
    guarded.
    """
    if sys.platform != "linux":
        return
    for _ in range(2):
        parent = _guard(parent)
    die_with(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _GUARDED)


def _guard(parent: int) -> int:
    """Stay as a guard, and return in a new process; return the guard's pid."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _GUARDED)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with(parent, signal.SIGTERM)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # descendants that lose their parent become its children
    own, child = os.getpid(), os.fork()
    if not child:
        return own
    for ignored in (signal.SIGINT, signal.SIGHUP):  # they reach a whole group; the new process decides for itself
        signal.signal(ignored, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):  # the ends of pipes belong to the new process alone
        os.dup2(nothing, descriptor)
    code = -signal.SIGTERM
    while signal.sigwait(_GUARDED) != signal.SIGTERM:
        if (status := _reaped().get(child)) is not None:
            code = os.waitstatus_to_exitcode(status)
            break
    _kill_all(own)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _GUARDED)
        os.kill(own, -code)
    os._exit(code)


def _reaped() -> dict[int, int]:
    """Return the status of each child that has ended, by its pid."""
    found: dict[int, int] = {}
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            found |= [ended]
    return found


def kill_descendants(pid: int) -> None:
    """Stop a process and kill all its descendants, whatever their sessions. It stays stopped: the caller kills it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    _kill_all(pid)


def _kill_all(pid: int) -> None:
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
