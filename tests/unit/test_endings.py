"""Processes that a stage leaves behind, found by their mark."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ral_system.endings import end_marked, mark

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")

STAGE = "5f3a"
ORPHAN = """
import os, time
if os.fork() == 0:
    os.setsid()
    print(os.getpid(), flush=True)
    time.sleep(60)
"""
SECOND_THREAD = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("on", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


class Programs:
    """Python programs with marks."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def __call__(self, code: str, owner: str, stage: str = STAGE) -> subprocess.Popen[str]:
        environment = os.environ | mark(stage, owner)
        command = [sys.executable, "-S", "-c", code]
        started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self._started.append(started)
        return started

    def close(self) -> None:
        """End what a failed test leaves."""
        for each in self._started:
            with each:
                each.kill()


@pytest.fixture
def program() -> Iterator[Programs]:
    programs = Programs()
    yield programs
    programs.close()


def state(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "gone"


def test_waits_for_what_ends_by_itself(program: Programs) -> None:
    ends = program("import time; time.sleep(0.4)", "rollout 0")
    began = time.monotonic()
    assert end_marked(STAGE, grace_s=20, kill_s=5) == []
    assert state(ends.pid) in ("Z", "gone")
    assert time.monotonic() - began < 10


def test_kills_what_does_not_end_and_says_whose_it_was(program: Programs) -> None:
    stays = program("import time; time.sleep(60)", "learner 3")
    others = program("import time; time.sleep(60)", "learner 3", stage="77aa")
    (left,) = end_marked(STAGE, grace_s=0.2, kill_s=20)
    assert (left.pid, left.owner, left.alive) == (stays.pid, "learner 3", False)
    assert left.command.startswith("python")
    assert state(stays.pid) in ("Z", "gone")
    assert others.poll() is None


def test_finds_an_orphan_in_a_session_of_its_own(program: Programs) -> None:
    starts = program(ORPHAN, "reward 0")
    assert starts.stdout is not None
    orphan = int(starts.stdout.readline())
    starts.wait(20)
    assert [(left.pid, left.owner) for left in end_marked(STAGE, 0.0, 20)] == [(orphan, "reward 0")]
    assert state(orphan) in ("Z", "gone")


def test_a_process_whose_first_thread_has_ended_is_alive(program: Programs) -> None:
    """The kernel calls it a zombie, but its other threads hold its memory."""
    half = program(SECOND_THREAD, "teacher 0")
    assert half.stdout is not None
    half.stdout.readline()
    deadline = time.monotonic() + 10
    while state(half.pid) != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(Path(f"/proc/{half.pid}/task").iterdir())) == 2
    assert [(left.pid, left.alive) for left in end_marked(STAGE, 0.0, 20)] == [(half.pid, False)]
    half.wait(20)


def test_a_killed_process_is_waited_for_until_its_memory_is_free(program: Programs) -> None:
    """Its environment is lost at the beginning of its end."""
    large = program("x = bytearray(2**28); print('on', flush=True); import time; time.sleep(60)", "learner 0")
    assert large.stdout is not None
    large.stdout.readline()
    large.kill()
    assert end_marked(STAGE, 20, 20) == []
    assert state(large.pid) == "Z"


def test_tells_of_what_even_a_kill_does_not_end(program: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    stays = program("import time; time.sleep(60)", "rollout 1")
    with monkeypatch.context() as patch:
        patch.setattr("ral_system.endings.os.kill", lambda pid, number: None)  # as in a driver's uninterruptible call
        (left,) = end_marked(STAGE, grace_s=0.0, kill_s=0.3)
    assert (left.pid, left.alive) == (stays.pid, True)
