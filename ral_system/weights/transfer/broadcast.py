"""Transfer from learner rank 0 to all engine processes, a broadcast per bucket: NCCL between GPUs, else gloo."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

from ral_system.weights.transfer.buckets import Bucket
from ral_system.weights.transfer.streamed import Streamed, kept
from ral_system.weights.transfer.transfer import Setting

_INTERFACES = "GLOO_SOCKET_IFNAME"
_GLOO_TRIES = 5
"""How often gloo connects, each time with the whole timeout of its group (torch 2.13)."""
_RAISES = "TORCH_NCCL_BLOCKING_WAIT"
"""A group of NCCL reads this when it is made. Unless it is set, a thread of the group ends the process after a failure,
even one that was raised and handled. DeepSpeed's groups are made without it, since their waits would then block."""


class BroadcastLine:
    """A process group of its own, beside those of DeepSpeed and vLLM. Rank 0 sends."""

    def __init__(self, store: Store, rank: int, setting: Setting) -> None:
        timeout = timedelta(seconds=setting.timeout_s)
        self._device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
        self._group: Any = (
            _gloo(store, rank, 1 + setting.receivers, timeout, setting.host)
            if self._device is None
            else _nccl(store, rank, 1 + setting.receivers, timeout)
        )
        self._timeout = timeout
        self._memory = torch.empty(0, dtype=torch.uint8, device=self._device)
        self._works: list[Any] = []
        self._ended = 0

    def begin(self, dealt: Sequence[Bucket]) -> None:
        """Allocate memory for the buckets that are under way at once, unless what was kept is large enough."""
        size = max(bucket.end for bucket in dealt)
        if len(self._memory) < size:
            self._memory = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._works, self._ended = [], 0

    def buffer(self, bucket: Bucket) -> Tensor:
        """Return the bucket's place in memory, once the last broadcast of an earlier bucket from there has ended.

        Raises RuntimeError if that takes longer than `rollout.weight_timeout_s`.
        """
        self._wait(bucket.after)
        return bucket.buffer(self._memory)

    def give(self, bucket: Bucket) -> None:
        """Start the broadcast of a bucket, and return before it has ended."""
        options = dist.BroadcastOptions()
        options.rootRank, options.timeout = 0, self._timeout
        self._works.append(self._group.broadcast([bucket.buffer(self._memory)], options))

    def take(self, dealt: Sequence[Bucket]) -> Iterator[Tensor]:
        """Receive broadcasts; the next one is under way while a bucket is read, if its place is another."""
        self.begin(dealt)
        for bucket in dealt:
            for other in dealt[len(self._works) : bucket.index + 2]:
                if other.after < bucket.index:
                    self.give(other)
            self._wait(bucket.index)
            yield bucket.buffer(self._memory)
        self.finish()

    def finish(self) -> None:
        """Wait for the broadcasts, then give the memory back, but for what is `kept`."""
        self._wait(len(self._works) - 1)
        self._memory, self._works = kept(self._memory), []

    def _wait(self, until: int) -> None:
        """Wait for the broadcasts up to this one."""
        while self._ended <= until:
            self._works[self._ended].wait(self._timeout)
            self._ended += 1

    def close(self) -> None:
        """End the group, with a collective that still runs. Raises RuntimeError if NCCL does not end it in time."""
        self._group.abort()


class Broadcast(Streamed[BroadcastLine]):
    """One group of learner rank 0 and all engine processes."""

    def open_line(self, store: Store, *, sender: bool) -> BroadcastLine:
        """Join the group."""
        return BroadcastLine(store, 0 if sender else 1 + self._setting.rank, self._setting)


def _gloo(store: Store, rank: int, size: int, timeout: timedelta, host: str) -> Any:
    kind: Any = dist.ProcessGroupGloo
    options = kind._Options()
    interfaces = [name for name in os.environ.get(_INTERFACES, "").split(",") if name]
    devices = [kind.create_device(interface=name) for name in interfaces]
    options._devices = devices or [kind.create_device(hostname=_own_address(host))]
    options._timeout = timeout / _GLOO_TRIES  # collectives have one of their own
    _wait_for_all(store, rank, size, timeout)
    return kind(store, rank, size, options)


def _own_address(host: str) -> str:
    """This node's address on the network by which it reaches `host`; a datagram socket finds it and sends nothing."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def _nccl(store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    """A group whose failures are raised where they are waited for, once every rank is there.

    NCCL connects without a time limit: one that waits for a rank which never comes cannot be ended.
    """
    _wait_for_all(store, rank, size, timeout)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    with _environment(_RAISES, "1"):
        return dist.ProcessGroupNCCL(store, rank, size, options)


def _wait_for_all(store: Store, rank: int, size: int, timeout: timedelta) -> None:
    store.set(f"here/{rank}", "")
    store.wait([f"here/{other}" for other in range(size)], timeout)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
