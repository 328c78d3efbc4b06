"""Signals between two processes, here two ends in one process."""

import gc
import os
import threading
import time
from pathlib import Path

import pytest

from ral_system.weights.transfer.signals import Signals


@pytest.fixture
def ends() -> tuple[Signals, Signals]:
    first = Signals()
    return first, Signals(first.address)


def test_signals_are_counted_in_each_direction(ends: tuple[Signals, Signals]) -> None:
    for giver, waiter in (ends, ends[::-1]):
        giver.give()
        giver.give()
        waiter.wait(1)
        waiter.wait(1)
        with pytest.raises(RuntimeError, match=r"^no signal from the other process within 0.05 s$"):
            waiter.wait(0.05)


def test_a_signal_wakes_who_waits(ends: tuple[Signals, Signals]) -> None:
    threading.Timer(0.1, ends[0].give).start()
    began = time.monotonic()
    ends[1].wait(30)
    assert 0.05 < time.monotonic() - began < 10


@pytest.mark.parametrize("ended", [0, 1])
def test_the_end_of_the_other_process_is_noticed_at_once(ends: tuple[Signals, Signals], ended: int) -> None:
    for giver, waiter in (ends, ends[::-1]):
        giver.give()
        waiter.wait(1)
    ends[ended].close()
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="the other process has ended"):
        ends[1 - ended].wait(30)
    with pytest.raises(RuntimeError, match="the other process has ended"):
        ends[1 - ended].give()
    assert time.monotonic() - began < 10


def test_only_pipes_of_a_process_on_this_node_are_opened(tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_CREAT | os.O_RDONLY)
    for path in (f"/proc/{os.getpid()}/fd/{file}", str(tmp_path / "file"), "/proc/self/fd/0"):
        with pytest.raises(RuntimeError, match=r"is not, or no longer, the learner.s memory for weights; does another"):
            Signals((path, path))
    with pytest.raises(RuntimeError, match="the other process has ended, or given up"):
        Signals(("/proc/4194304/fd/9", "/proc/4194304/fd/9"))
    os.close(file)


def test_nothing_stays_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    first = Signals()
    second = Signals(first.address)
    second.give()
    first.wait(1e9)  # more milliseconds than poll takes
    assert first.address is None
    first.close()
    second.close()
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
