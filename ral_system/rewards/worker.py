"""The parent's end of one verifier process. Nothing here blocks; the pool's thread polls."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from ral_system.errors import SetupError
from ral_system.subprocesses import kill_descendants
from ral_system.types import RewardStatus

_END_S = 10
START_TIMEOUT_S = 120.0
"""Bound on a process's start: importing pydantic and the verifier, on a machine whose cores may all be busy."""
_MAX_LINE_BYTES = 2**20
WINDOW = 32
"""Jobs that a process holds at once, so it need not wait for the parent between two."""


@dataclass(frozen=True, slots=True)
class Job:
    """One completion to judge."""

    completion_id: str
    text: str
    reference: str
    kind: str


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a process must be replaced. `status` is the verdict on the job it was working on."""

    status: RewardStatus
    detail: str


class Worker:
    """A verifier process and the jobs it holds, oldest first: the first is the one being judged."""

    def __init__(self, greeting: bytes) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ral_system.rewards.child", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # its own process group, so what a verifier starts is killed with it
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to_fd, self._from_fd = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to_fd, False)
        os.set_blocking(self._from_fd, False)
        self._outgoing = bytearray(greeting)
        self._incoming = b""
        self._ended = False
        self._garbled = False
        self._progress_at = time.monotonic()
        self.jobs: deque[Job] = deque()
        self.ready = False

    def interests(self) -> list[tuple[int, int]]:
        """Return what to poll for: (file descriptor, event mask)."""
        wanted = [(self._from_fd, select.POLLIN)]
        return [*wanted, (self._to_fd, select.POLLOUT)] if self._outgoing else wanted

    def send(self, jobs: list[Job]) -> None:
        """Queue jobs for the process."""
        if not self.jobs:
            self._progress_at = time.monotonic()
        self.jobs.extend(jobs)
        self._outgoing += b"".join(json.dumps([job.text, job.reference, job.kind]).encode() + b"\n" for job in jobs)

    def flush(self) -> None:
        """Write as much of the queue as the pipe takes."""
        if self._outgoing:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                del self._outgoing[: os.write(self._to_fd, self._outgoing)]

    def receive(self) -> list[tuple[Job, dict[str, Any]]]:
        """Return the verdicts that arrived since the last call, with their jobs. Anything else ends the process.

        Raises SetupError where the process cannot load its verifier.
        """
        with contextlib.suppress(BlockingIOError):
            while not self._ended and len(self._incoming) <= _MAX_LINE_BYTES:
                data = os.read(self._from_fd, 65536)
                self._incoming += data
                self._ended = not data
        *lines, self._incoming = self._incoming.split(b"\n")
        messages = list(itertools.takewhile(bool, map(_message, lines)))[: len(self.jobs) + (not self.ready)]
        self._garbled |= len(messages) < len(lines) or len(self._incoming) > _MAX_LINE_BYTES
        if messages:
            self._progress_at = time.monotonic()
        if messages and not self.ready:
            first = messages.pop(0)
            if "broken" in first:
                raise SetupError(f"a verifier process cannot load its verifier: {first['broken']}")
            self.ready = True
        return [(self.jobs.popleft(), message) for message in messages]

    def loss(self, timeout_s: float) -> Loss | None:
        """Return why this process is lost, or None. Call after `receive`, so no verdict is missed."""
        waited = time.monotonic() - self._progress_at
        if self._garbled:
            return Loss(RewardStatus.ERROR, "the verifier wrote into the pipe of its process")
        if self._ended:
            return Loss(RewardStatus.ERROR, f"the verifier process {self._how_it_ended()}")
        if not self.ready and waited > START_TIMEOUT_S:
            return Loss(RewardStatus.ERROR, f"the verifier process did not start within {START_TIMEOUT_S:g} s")
        if self.ready and self.jobs and waited > timeout_s:
            return Loss(RewardStatus.TIMEOUT, f"no verdict within {timeout_s:g} s")
        return None

    def deadline_in(self, timeout_s: float) -> float | None:
        """Return the seconds until `loss` can become a timeout, or None when nothing runs."""
        if self.ready and not self.jobs:
            return None
        return max(0.0, self._progress_at + (timeout_s if self.ready else START_TIMEOUT_S) - time.monotonic())

    def kill(self) -> None:
        """End the process, everything in its group, and what it started in groups of their own."""
        if self._process.poll() is None:
            kill_descendants(self._process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            what = f"verifier process {self._process.pid} is alive {_END_S} s after it was killed"
            print(f"warning: {what}", file=sys.stderr, flush=True)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"exited with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def _message(line: bytes) -> dict[str, Any]:
    """A message as `child` sends them; empty for anything else."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) and _is_sound(message) else {}


def _is_sound(message: dict[str, Any]) -> bool:
    if set(message) == {"parts"}:
        parts = message["parts"]
        return isinstance(parts, dict) and all(
            isinstance(value, float) and math.isfinite(value) for value in parts.values()
        )
    return message == {"ready": True} or any(
        set(message) == {name} and isinstance(message[name], str) for name in ("error", "broken")
    )
