"""From learner rank 0 to all engine processes, one collective per bucket: NCCL between GPUs, gloo between CPUs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

from ral_system.weights.transfer.streamed import Streamed
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
        self._buffer = torch.empty(0, dtype=torch.uint8, device=self._device)

    def buffer(self, size: int) -> Tensor:
        """The one buffer, large enough."""
        if self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=torch.uint8, device=self._device)
        return self._buffer[:size]

    def give(self, size: int) -> None:
        """Broadcast the buffer."""
        options = dist.BroadcastOptions()
        options.rootRank, options.timeout = 0, self._timeout
        self._group.broadcast([self._buffer[:size]], options).wait(self._timeout)

    def take(self, size: int) -> Tensor:
        """Receive a broadcast."""
        buffer = self.buffer(size)
        self.give(size)
        return buffer

    def finish(self) -> None:
        """Give the buffer's memory back."""
        self._buffer = self._buffer.new_empty(0)

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
