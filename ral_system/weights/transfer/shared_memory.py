"""Transfer through memory that learner and engine processes share: CUDA IPC on one GPU, a file without a name on a CPU.

The file is in no folder: it is found through the process that made it, and gone when nobody has it open.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from ral_system.errors import WeightSyncError
from ral_system.weights.transfer.buckets import BUCKET_BYTES, Bucket
from ral_system.weights.transfer.signals import Signals, found, opened, this_node
from ral_system.weights.transfer.streamed import Streamed, kept

_NAME = "ral_weights"
_IN_CACHE = 4 << 20


class SharedLine:
    """Memory that the sender writes and the receivers read, bucket by bucket. Each signals to the other."""

    def __init__(self, store: Store, receivers: list[int], rank: int, timeout_s: float) -> None:
        self._store, self._receivers, self._rank, self._timeout_s = store, receivers, rank, timeout_s
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._given, self._taken = -1, -1
        self._files: list[int] = []
        self._signals: list[Signals] = []
        self._closing = weakref.finalize(self, _close, self._files, self._signals)

    def begin(self, dealt: Sequence[Bucket]) -> None:
        """Allocate memory for the buckets that are under way at once, unless what was kept is large enough.

        The store tells each receiver where new memory is. It has kept as much as the sender, and makes the same
        comparison, so it knows when to look there.
        """
        self._given, self._taken = -1, -1
        if len(self._memory) >= (size := _size(dealt)):
            return
        _close(self._files, [])
        self._memory, files, handle = _allocate(size)
        self._files += files
        self._signals += [Signals() for _ in self._receivers[len(self._signals) :]]
        for receiver, signals in zip(self._receivers, self._signals, strict=True):
            self._store.set(f"receiver/{receiver}", json.dumps([this_node(), handle, signals.address]))

    def buffer(self, bucket: Bucket) -> Tensor:
        """Return the bucket's place in memory, once every receiver is done with the earlier buckets that were there.

        Raises RuntimeError if a receiver has ended, or takes longer than `rollout.weight_timeout_s`.
        """
        self._wait_for_receivers(bucket.after)
        return bucket.buffer(self._memory)

    def give(self, bucket: Bucket) -> None:
        """Tell the receivers that the bucket is filled."""
        _synchronize(self._memory)
        self._given = bucket.index
        for signals in self._signals:
            signals.give()

    def finish(self) -> None:
        """Wait until the receivers are done with the last bucket, then give the memory back, but for what is `kept`."""
        self._wait_for_receivers(self._given)
        self._memory = kept(self._memory)

    def take(self, dealt: Sequence[Bucket]) -> Iterator[Tensor]:
        """Open the sender's memory if it is new, and yield each bucket of it when the sender has filled it."""
        if len(self._memory) < _size(dealt):
            self._find()
        (signals,) = self._signals
        for bucket in dealt:
            signals.wait(self._timeout_s)
            yield bucket.buffer(self._memory)
            _synchronize(self._memory)
            if bucket is dealt[-1]:
                self._memory = kept(self._memory)  # before the sender gives it back
            signals.give()

    def _find(self) -> None:
        key = f"receiver/{self._rank}"
        self._store.wait([key], timedelta(seconds=self._timeout_s))
        node, handle, address = json.loads(self._store.get(key))
        self._store.delete_key(key)  # the store lasts for the run
        if node != this_node():
            raise WeightSyncError(
                "the learner's memory for weights is not on this node; set rollout.weight_transfer=broadcast"
            )
        self._memory = _open(handle)
        if not self._signals:
            if address is None:
                raise RuntimeError("this connection began with another process in this one's place")
            self._signals.append(Signals(tuple(address)))

    def _wait_for_receivers(self, index: int) -> None:
        while self._taken < index:
            for signals in self._signals:
                signals.wait(self._timeout_s)
            self._taken += 1

    def close(self) -> None:
        """Close the files, so the memory goes with the last who has it open."""
        self._closing()


class SharedMemory(Streamed[SharedLine]):
    """Every sending rank serves the engine processes beside it, on its device or node."""

    def bucket_bytes(self) -> int:
        """Return the size of a bucket. An engine on a CPU finds a small one in the processor's cache."""
        return BUCKET_BYTES if torch.cuda.is_available() else _IN_CACHE

    @property
    def sends(self) -> bool:
        """Whether this rank of the learner sends."""
        return self._setting.rank < self._setting.senders

    def open_line(self, store: Store, *, sender: bool) -> SharedLine:
        """Connect through the store alone."""
        setting = self._setting
        own = setting.rank % setting.senders
        served = [receiver for receiver in range(setting.receivers) if receiver % setting.senders == own]
        return SharedLine(PrefixStore(str(own), store), served, setting.rank, setting.timeout_s)


def _size(dealt: Sequence[Bucket]) -> int:
    """Bytes that the buckets take together; one at least, so there is always memory to tell of."""
    return max(1, *(bucket.end for bucket in dealt))


def _close(files: list[int], signals: list[Signals]) -> None:
    for file in files:
        os.close(file)
    files.clear()
    for each in signals:
        each.close()
    signals.clear()


def _synchronize(memory: Tensor) -> None:
    if memory.is_cuda:
        torch.cuda.synchronize()


def _allocate(size: int) -> tuple[Tensor, list[int], Any]:
    """New memory, the descriptors that keep it findable, and what opens it in another process."""
    if torch.cuda.is_available():
        memory = torch.empty(size, dtype=torch.uint8, device="cuda")
        handle = [part.hex() if isinstance(part, bytes) else part for part in memory.untyped_storage()._share_cuda_()]
        return memory, [], handle
    descriptor = os.memfd_create(_NAME)
    os.ftruncate(descriptor, size)
    path = opened(descriptor)
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8), [descriptor], path


def _open(handle: Any) -> Tensor:
    if isinstance(handle, str):
        size = found(handle, f"/memfd:{_NAME}").stat().st_size
        return torch.from_file(handle, shared=True, size=size, dtype=torch.uint8)
    _, *arguments = [bytes.fromhex(part) if isinstance(part, str) else part for part in handle]
    # The same GPU has another index here than in the learner, if this process sees several.
    storage = torch.UntypedStorage._new_shared_cuda(torch.cuda.current_device(), *arguments)
    return torch.empty(0, dtype=torch.uint8, device="cuda").set_(storage)
