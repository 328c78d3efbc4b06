"""The learner's two ranks without Ray: how much of scoring and of an update is communication through gloo."""

from __future__ import annotations

import multiprocessing as mp
import os
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from bench.step.learner import GATE, Columns, Work

RANKS = 2
_COLLECTIVES = ("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor")


def measure(work: Work, repeats: int) -> Columns:
    """Milliseconds of rank 0 in scoring and in an update, each rank with half of the samples."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn, (mine, theirs) = mp.get_context("spawn"), mp.Pipe(duplex=False)
    ranks = [
        spawn.Process(target=_rank, args=(theirs, work, rank, port, repeats), daemon=True) for rank in range(RANKS)
    ]
    for rank in ranks:
        rank.start()
    theirs.close()
    try:
        found: Columns = mine.recv()
    finally:
        for rank in ranks:
            rank.join(timeout=60)
    return found


def _rank(pipe: Connection, work: Work, rank: int, port: int, repeats: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    import torch

    from bench.peers.questions import compose

    torch.set_num_threads(1)
    config = compose(["experiment=quickstart", f"learner.world_size={RANKS}", "learner.learning_rate=1e-5", GATE])
    _, calls = work.calls(config, rank, RANKS)
    spent = Communication()
    spent.watch(torch.distributed)
    found = {name: shares(call, spent, repeats) for name, call in calls.items()}
    if rank == 0:
        pipe.send(found)


class Communication:
    """Seconds in collective calls, with the wait for the other ranks."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def watch(self, module: Any) -> None:
        """Time the collectives of torch.distributed from now on; they return when they are done."""
        for name in _COLLECTIVES:
            setattr(module, name, self._timed(getattr(module, name)))

    def _timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            pending = collective(*args, **kwargs)
            if pending is not None:
                pending.wait()
            self.seconds += time.perf_counter() - began
            self.calls += 1
            return pending

        return run


def shares(call: Callable[[], object], spent: Communication, repeats: int) -> dict[str, float]:
    """Medians over calls after the first: milliseconds in all, of communication, and of the rest; and how often."""
    rows = []
    for _ in range(repeats + 1):
        seconds, calls, began = spent.seconds, spent.calls, time.perf_counter()
        call()
        whole = 1e3 * (time.perf_counter() - began)
        gloo = 1e3 * (spent.seconds - seconds)
        rows.append((whole, gloo, whole - gloo, float(spent.calls - calls)))
    names = ("all", "gloo, with the wait for the other rank", "passes and DeepSpeed", "collective calls (number)")
    return dict(zip(names, map(statistics.median, zip(*rows[1:], strict=True)), strict=True))
