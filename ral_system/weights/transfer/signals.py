"""Signals between two processes on a node, which arrive in microseconds."""

from __future__ import annotations

import os
import re
import select
from functools import cache
from pathlib import Path

_ENDED = "the other process has ended, or given up"
_OPENED = re.compile(r"/proc/\d+/fd/\d+")
_LONGEST_MS = 2**31 - 1
"""Longest wait that `poll` takes: 25 days."""


class Signals:
    """A pipe in each direction. One process makes them; the other opens its ends at the first one's `address`.

    Raises RuntimeError if the pipes are not there. Once the other process has signalled, there is no address any more.
    """

    def __init__(self, address: tuple[str, str] | None = None) -> None:
        self._files: list[int] = []
        self._theirs: list[int] = []
        self.address = address
        if address is None:
            self._in, their_out = os.pipe()
            their_in, self._out = os.pipe()
            self._files, self._theirs = [self._in, self._out], [their_in, their_out]
            self.address = (opened(their_in), opened(their_out))
        else:
            self._in, self._out = self._open(address[0], os.O_RDONLY), self._open(address[1], os.O_WRONLY)
        self._waiting = select.poll()
        self._waiting.register(self._in, select.POLLIN)

    def give(self) -> None:
        """Send a signal. Raises RuntimeError if the other process has ended after its first signal."""
        try:
            os.write(self._out, b"\0")
        except BrokenPipeError as error:
            raise RuntimeError(_ENDED) from error

    def wait(self, timeout_s: float) -> None:
        """Wait for a signal that was not waited for yet.

        Raises RuntimeError if none comes in time, and at once if the other process ends after its first signal.
        """
        if not self._waiting.poll(min(1000 * timeout_s, _LONGEST_MS)):
            raise RuntimeError(f"no signal from the other process within {timeout_s:g} s")
        if not os.read(self._in, 1):
            raise RuntimeError(_ENDED)
        self._close(self._theirs)  # the other process has them; from now on its end is noticed
        self.address = None

    def close(self) -> None:
        """Close this process's ends."""
        self._close(self._files)
        self._close(self._theirs)

    def _close(self, files: list[int]) -> None:
        for file in files:
            os.close(file)
        files.clear()

    def _open(self, path: str, mode: int) -> int:
        try:
            self._files.append(os.open(found(path, "pipe:"), mode))
        except OSError as error:
            raise RuntimeError(_ENDED) from error
        return self._files[-1]


def opened(descriptor: int) -> str:
    """Return the path at which other processes on this node find a file that this one has open."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def found(path: str, kind: str) -> Path:
    """Check that another process on this node has a file of this kind open at the path.

    Raises RuntimeError if it has none there any more, or another program announced the path.
    """
    try:
        if _OPENED.fullmatch(path) and str(Path(path).readlink()).startswith(kind):
            return Path(path)
    except OSError as error:
        raise RuntimeError(_ENDED) from error
    raise RuntimeError(
        f"{path} is not, or no longer, the learner's memory for weights; does another program use the run's ports?"
    )


@cache
def this_node() -> str:
    """Return what only processes that find each other in /proc have in common: the boot and the space of pids."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
