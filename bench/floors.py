"""How long this machine takes to copy bytes within a process, and gloo to broadcast them to another: nothing else."""

from __future__ import annotations

import multiprocessing as mp
import time
from collections.abc import Sequence
from functools import cache
from multiprocessing.queues import SimpleQueue
from typing import Any

from ral_system.weights.transfer.buckets import BUCKET_BYTES, TOGETHER

_TIMES = 11
_WITHIN_S = 300.0


def copied(shapes: tuple[tuple[int, ...], ...]) -> float:
    """Seconds of a copy of tensors of these shapes."""
    pairs = _tensors(shapes)
    began = time.perf_counter()
    for copy, weight in pairs:
        copy.copy_(weight)
    return time.perf_counter() - began


@cache
def _tensors(shapes: tuple[tuple[int, ...], ...]) -> Sequence[tuple[Any, Any]]:
    """Two tensors of each shape, whose pages are there."""
    import torch

    return [(torch.ones(shape), torch.ones(shape)) for shape in shapes]


def broadcast_s(size: int) -> Sequence[float]:
    """Seconds of each of several broadcasts of `size` bytes, in buckets of the size and number that a transfer uses."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    spawning = mp.get_context("spawn")
    store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    answers: SimpleQueue[list[float]] = spawning.SimpleQueue()
    processes = [
        spawning.Process(target=_broadcast, args=(answers, rank, store.port, size), daemon=True) for rank in range(2)
    ]
    for process in processes:
        process.start()
    processes[0].join(_WITHIN_S)
    for process in processes:
        process.kill()
    if answers.empty():
        raise RuntimeError(f"two processes did not broadcast {size} bytes through gloo within {_WITHIN_S:.0f} s")
    return answers.get()


def _broadcast(answers: SimpleQueue[list[float]], rank: int, port: int, size: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    own: Any = dist
    group = own.ProcessGroupGloo(own.TCPStore("127.0.0.1", port, 2, is_master=False), rank, 2)
    memory = torch.ones(TOGETHER, BUCKET_BYTES, dtype=torch.uint8)
    seconds = []
    options = dist.BroadcastOptions()
    options.rootRank = 0
    for _ in range(_TIMES):
        group.barrier().wait()
        works: list[Any] = []
        began = time.perf_counter()
        for index, start in enumerate(range(0, size, BUCKET_BYTES)):
            if index >= TOGETHER:
                works[index - TOGETHER].wait()
            works.append(group.broadcast([memory[index % TOGETHER, : size - start]], options))
        for work in works[-TOGETHER:]:
            work.wait()
        seconds.append(time.perf_counter() - began)
    group.barrier().wait()
    if rank == 0:
        answers.put(seconds)
