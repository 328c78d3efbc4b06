"""Through memory that learner and engine processes share: CUDA IPC on one GPU, a file without a name on a CPU.

The file is in no folder: it is found through the process that made it, and gone when nobody has it open.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from ral_system.errors import WeightSyncError
from ral_system.weights.transfer.buckets import Bucket
from ral_system.weights.transfer.streamed import Streamed

_NAME = "ral_weights"
_OPENED = re.compile(r"/proc/\d+/fd/\d+")


class SharedLine:
    """Memory that the sender writes and the receivers read, bucket by bucket, as they announce in the store.

    It serves one version.
    """

    def __init__(self, store: Store, receivers: list[int], rank: int, timeout_s: float) -> None:
        self._store, self._receivers, self._rank = store, receivers, rank
        self._timeout = timedelta(seconds=timeout_s)
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._last = -1
        self._file: int | None = None

    def begin(self, dealt: Sequence[Bucket]) -> None:
        """Allocate, and say where."""
        self._memory, self._file, handle = _allocate(max(bucket.end for bucket in dealt))
        self._store.set("memory", handle)

    def buffer(self, bucket: Bucket) -> Tensor:
        """The bucket's place, once every receiver is done with what was there."""
        self._wait_for_receivers(bucket.after)
        return bucket.buffer(self._memory)

    def give(self, bucket: Bucket) -> None:
        """Announce the bucket."""
        _synchronize(self._memory)
        self._last = bucket.index
        self._store.set(f"given/{bucket.index}", "")

    def finish(self) -> None:
        """Wait for the receivers."""
        self._wait_for_receivers(self._last)
        self._memory = self._memory.new_empty(0)
        self.close()

    def take(self, dealt: Sequence[Bucket]) -> Iterator[Tensor]:
        """The announced buckets."""
        self._store.wait(["memory"], self._timeout)
        memory = _open(self._store.get("memory").decode())
        for bucket in dealt:
            self._store.wait([f"given/{bucket.index}"], self._timeout)
            yield bucket.buffer(memory)
            _synchronize(memory)
            if bucket is dealt[-1]:
                del memory  # before the sender gives it back
            self._store.set(f"taken/{bucket.index}/{self._rank}", "")

    def _wait_for_receivers(self, index: int) -> None:
        if index >= 0:
            self._store.wait([f"taken/{index}/{receiver}" for receiver in self._receivers], self._timeout)

    def close(self) -> None:
        """Close the file, so the memory goes with the last who has it open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        self.close()


class SharedMemory(Streamed[SharedLine]):
    """Every sending rank serves the engine processes beside it, on its device or node."""

    lines_last = False

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


def _synchronize(memory: Tensor) -> None:
    if memory.is_cuda:
        torch.cuda.synchronize()


def _allocate(size: int) -> tuple[Tensor, int | None, str]:
    """New memory, the descriptor that keeps it findable, and what opens it in another process."""
    if torch.cuda.is_available():
        memory = torch.empty(size, dtype=torch.uint8, device="cuda")
        handle = [part.hex() if isinstance(part, bytes) else part for part in memory.untyped_storage()._share_cuda_()]
        return memory, None, json.dumps(handle)
    descriptor = os.memfd_create(_NAME)
    os.ftruncate(descriptor, size)
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8), descriptor, json.dumps(path)


def _open(handle: str) -> Tensor:
    found: Any = json.loads(handle)
    if isinstance(found, str):
        path = Path(found)
        try:
            of_weights = _OPENED.fullmatch(found) and path.readlink().name.startswith(f"memfd:{_NAME}")
        except OSError as error:
            raise WeightSyncError(
                f"the learner's memory {found} is not on this node; set rollout.weight_transfer=broadcast"
            ) from error
        if not of_weights:
            raise WeightSyncError(
                f"{found} was announced as the learner's memory for weights, and is not; does another program use the "
                "run's ports?"
            )
        return torch.from_file(found, shared=True, size=path.stat().st_size, dtype=torch.uint8)
    _, *arguments = [bytes.fromhex(part) if isinstance(part, str) else part for part in found]
    # The same GPU has another index here than in the learner, if this process sees several.
    storage = torch.UntypedStorage._new_shared_cuda(torch.cuda.current_device(), *arguments)
    return torch.empty(0, dtype=torch.uint8, device="cuda").set_(storage)
