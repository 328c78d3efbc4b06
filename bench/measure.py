"""Time and peak memory of a call, on either device, even if the call ends its process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import re
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from ral_system.config.choices import Device

Key = TypeVar("Key")
Call = Callable[[], Any]

TIME_METHOD = {
    "cuda": "CUDA events around each call, after two warm-up calls; variants take turns; median",
    "cpu": "perf_counter around each call, after one warm-up call; variants take turns; median",
}
MEMORY_METHOD = {
    "cuda": "torch.cuda.max_memory_allocated during the call, less what was allocated before it",
    "cpu": "a fresh process for each figure: its peak resident size (VmHWM, reset through /proc/self/clear_refs) "
    "during the call, less its resident size before it; freed memory returned at once (mallopt)",
}
_M_MMAP_THRESHOLD = -3


def available_bytes(device: Device) -> int | None:
    """Return the free memory, or None if it is unknown."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def reason(error: BaseException) -> str:
    """An exception in one line: its type and the first sentence of its message."""
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        return f"out of memory: {text[:160]}"
    return f"{type(error).__name__}: {text[:200]}"


def attempt(call: Call) -> str | None:
    """Run the call; why it failed, or None. What it held is free again afterwards."""
    why = None
    try:
        call()
    except Exception as error:  # any: one variant's failure is a result, and must not end the others
        why = reason(error)
    if why:
        release()
    return why


def release() -> None:
    """Release memory that nothing refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def time_in_turns(
    calls: dict[Key, Call], device: Device, *, min_repeats: int, max_repeats: int, seconds: float
) -> tuple[dict[Key, list[float]], dict[Key, str]]:
    """Seconds of every repeat of each call, and why calls failed. Calls take turns, so all see the same machine.

    Calls are repeated together until `seconds` are spent, but between `min_repeats` and `max_repeats` times.
    """
    failures: dict[Key, str] = {}

    def alive() -> list[Key]:
        return [key for key in calls if key not in failures]

    for _ in range(2 if device == "cuda" else 1):
        for key in alive():
            if why := attempt(calls[key]):
                failures[key] = why
    times: dict[Key, list[float]] = {key: [] for key in alive()}
    began = time.perf_counter()
    for repeat in range(max_repeats):
        if repeat >= min_repeats and time.perf_counter() - began > seconds:
            break
        for key in alive():
            why = attempt(lambda call=calls[key], into=times[key]: into.append(_duration(call, device)))  # type: ignore[misc]
            if why:
                failures[key] = why
                times.pop(key)
    return times, failures


def _duration(call: Call, device: Device) -> float:
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class PeakMemory:
    """Peak memory beyond what the process held when this was made. Call `bytes` while or after something runs."""

    def __init__(self, device: Device) -> None:
        self._device = device
        gc.collect()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_THRESHOLD, 1 << 16)  # what is freed goes back at once, not into a heap that lingers
            libc.malloc_trim(0)  # freed pages still resident would be used again unseen
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _status_bytes("VmRSS")

    def bytes(self) -> int:
        """Return the peak so far."""
        if self._device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self._before
        return _status_bytes("VmHWM") - self._before


def _status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"/proc/self/status has no {field}"
    return int(found[1]) * 1024


def in_child(function: Callable[..., Any], *args: Any, timeout_s: float = 120.0) -> tuple[Any, str | None]:
    """(what the function returned, None) from a process of its own, or (None, why it did not).

    Processes are forked from a server that has imported torch and run nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.terms"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, args), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout_s):
            process.kill()
            return None, f"no answer within {timeout_s:g} s"
        answer: tuple[Any, str | None] = receiver.recv()
        return answer
    except EOFError:
        process.join()
        return None, f"its process died, exit code {process.exitcode} (out of memory if -9)"
    finally:
        process.join()
        receiver.close()


def _child(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(
            "1000"
        )  # if memory runs out, the kernel kills this process and no other
    answer: list[Any] = []
    why = attempt(lambda: answer.append(function(*args)))
    sender.send((answer[0] if answer else None, why))
