"""Stacks of processes that do not answer, which they write into their log at a signal."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ral_system import stacks
from ral_system.stacks import position, request_stacks

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="finds processes in /proc")

HANDLER = f"""
import sys
sys.path.append({str(Path(stacks.__file__).parents[1])!r})
from ral_system.stacks import write_at_signal
write_at_signal()
"""
HOLDS_THE_LOCK = """
import re
pattern = re.compile(r"(a+)+$")
def answer():
    print("on", flush=True) or pattern.match("a" * 60 + "b")  # on one line: it cannot be seen between them
def call():
    answer()
"""
SLEEPS = """
import time
def call():
    print("on", flush=True)
    time.sleep(60)
"""
STARTS_A_RANK = """
import os, time
reads, writes = os.pipe()
rank = os.fork()
def of_the_actor():
    os.read(reads, 1)
    print("on", flush=True)
    time.sleep(60)
def of_the_rank():
    os.write(writes, b".")
    time.sleep(60)
def call():
    of_the_actor() if rank else of_the_rank()
"""
DUMP = """\
Thread 0x00007f66 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait
  File "/site-packages/deepspeed/monitor.py", line 12 in run

Current thread 0x00007f67 (most recent call first):
  File "/site-packages/PIL/Image.py", line 3505 in open
  File "/opt/ral_system/media/store.py", line 151 in pixels
  File "/site-packages/other/between.py", line 3 in between
  File "/opt/ral_system/batches/collate.py", line 40 in collate
  File "/opt/ral_system/training/learner_rank.py", line 99 in fit
  File "/opt/ral_system/actors/learner.py", line 127 in fit
  File "/opt/ral_system/actors/process.py", line 104 in run
  File "/site-packages/ray/_private/workers/default_worker.py", line 324 in <module>
"""

Start = Callable[..., tuple[subprocess.Popen[str], Path]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program whose standard error is a log; return when it is in its call."""
    started: list[subprocess.Popen[str]] = []
    folder = tmp_path / "ral_system" / "actors"
    folder.mkdir(parents=True)

    def run(code: str, name: str = "learner", handler: str = HANDLER) -> tuple[subprocess.Popen[str], Path]:
        program, log = folder / f"{name}.py", tmp_path / f"{name}.log"
        program.write_text(f"{handler}{code}call()\n")
        with log.open("a") as file:
            file.write("--- an earlier line\n")
            file.flush()
            command = [sys.executable, "-S", str(program)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        return process, log

    yield run
    for process in started:
        with process:
            os.killpg(process.pid, signal.SIGKILL)


def test_names_the_innermost_frame_and_what_called_it() -> None:
    assert position(DUMP) == "it is in open (Image.py:3505), from pixels (store.py:151), from collate (collate.py:40)"
    other = DUMP.replace("Current thread 0x00007f67", "Thread 0x00007f68").replace("fit", "load")
    assert position(f"{DUMP}\n{other}").count("in open (Image.py:3505)") == 2
    assert position(DUMP.partition("\n\n")[0]) == "no method of it is running"


@needs_proc
def test_a_process_whose_c_code_holds_the_lock_writes_its_stack(start: Start) -> None:
    process, log = start(HOLDS_THE_LOCK)
    (said,) = request_stacks([log])
    assert said.startswith("it is in answer (learner.py:10), from call (learner.py:12), from <module> (learner.py:")
    assert said.endswith(f"; the stacks of its threads are at the end of {log}")
    assert log.read_text().startswith("--- an earlier line\n")
    assert process.poll() is None
    (again,) = request_stacks([log])
    assert again == said and log.read_text().count("in answer") == 2


@needs_proc
def test_processes_of_one_log_write_one_after_another(start: Start) -> None:
    """An actor and the rank that it started; another actor beside them."""
    _, log = start(STARTS_A_RANK)
    _, other = start(SLEEPS, "rollout")
    said = request_stacks([log, other])
    assert said[0].startswith("it is in of_the_actor (learner.py:")
    assert " and in of_the_rank (learner.py:" in said[0]
    assert said[1].startswith("it is in call (rollout.py:")
    assert log.read_text().count("\n  File ") == 6


@needs_proc
def test_a_process_without_the_handler_is_left_alone(start: Start, tmp_path: Path) -> None:
    """The signal would end it: a verifier, for example, writes to the log of the actor that started it."""
    process, log = start(SLEEPS, handler="")
    assert request_stacks([log, tmp_path / "missing.log"]) == ["its process was not found"] * 2
    assert process.poll() is None


@needs_proc
def test_a_process_that_is_stopped_is_not_waited_for_longer(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_WRITE_S", 0.5)
    process, log = start(SLEEPS)
    os.kill(process.pid, signal.SIGSTOP)
    assert request_stacks([log]) == [f"it is stopped, and wrote no stack within 0.5 s; its log is {log}"]
    os.kill(process.pid, signal.SIGCONT)
