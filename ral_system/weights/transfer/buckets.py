"""Weights bucket by bucket: each side needs memory for a few, whatever the size of the model and its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ral_system.types import WeightManifest
from ral_system.weights.transfer.transfer import Piece, divided

BUCKET_BYTES = 16 << 20
TOGETHER = 4
"""Full buckets in the memory of a version."""
_ALIGNED = 16


@dataclass(frozen=True, slots=True)
class Slot:
    """Bytes of a buffer that a tensor takes, or rows of it, as many as `shape` says, from `first` on."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    size: int
    start: int
    first: int = 0

    @property
    def end(self) -> int:
        """Where its bytes end."""
        return self.start + self.size

    def view(self, buffer: Tensor) -> Tensor:
        """The tensor in a buffer of bytes."""
        return buffer[self.start : self.end].view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tensors that travel together, in the `index`-th buffer."""

    index: int
    slots: tuple[Slot, ...]
    start: int
    """First byte in the memory that the buckets of a version have together."""
    after: int
    """Index of the latest earlier bucket whose memory it reuses, -1 if there is none."""

    @property
    def size(self) -> int:
        """Bytes of the buffer."""
        return self.slots[-1].end

    @property
    def end(self) -> int:
        """Where its bytes end in the memory."""
        return self.start + self.size

    def buffer(self, memory: Tensor) -> Tensor:
        """The bucket's bytes of the memory."""
        return memory[self.start : self.end]

    def pieces(self, buffer: Tensor) -> Iterator[Piece]:
        """Yield the pieces in a buffer."""
        for slot in self.slots:
            yield Piece(slot.name, slot.view(buffer), slot.first)


def buckets(manifest: WeightManifest, names: Sequence[str], at_most: int) -> Sequence[Bucket]:
    """Deal the named tensors, in this order, to buckets of `at_most` bytes. A larger tensor is divided between rows.

    They follow each other in memory; one that would not fit begins at the start again. So one can be filled while
    others are read. Sender and receivers come to the same buckets.
    """
    entries = ((name, manifest.tensors[name]) for name in names)
    return _deal(tuple((name, entry.shape, entry.dtype) for name, entry in entries), at_most)


@lru_cache(maxsize=2)  # from the second version on, the same tensors travel
def _deal(tensors: Sequence[tuple[str, tuple[int, ...], str]], at_most: int) -> Sequence[Bucket]:
    dealt: list[list[Slot]] = []
    end = at_most
    for slot in (slot for tensor in tensors for slot in _slots(*tensor, at_most)):
        placed = replace(slot, start=_aligned(end))
        if not dealt or placed.end > at_most:
            placed = slot
            dealt.append([])
        dealt[-1].append(placed)
        end = placed.end
    room = max(TOGETHER * at_most, *(slots[-1].end for slots in dealt)) if dealt else 0
    found: list[Bucket] = []
    for index, slots in enumerate(dealt):
        size, start = slots[-1].end, _aligned(found[-1].end) if found else 0
        start = start if start + size <= room else 0
        before = (b.index for b in reversed(found) if b.start < start + size and start < b.end)
        found.append(Bucket(index, tuple(slots), start, next(before, -1)))
    return found


def memory_of(tensors: Iterable[tuple[Sequence[int], torch.dtype]], at_most: int) -> int:
    """Upper bound of the buffers' memory for tensors of these shapes and dtypes, in bytes."""
    return max([TOGETHER * at_most, *(row_bytes(shape, dtype) for shape, dtype in tensors)])


def _slots(name: str, shape: tuple[int, ...], dtype_name: str, at_most: int) -> Iterator[Slot]:
    """Yield the pieces of a tensor, each as if at the start of a buffer."""
    dtype: torch.dtype = getattr(torch, dtype_name)
    for first, count in divided(shape, row_bytes(shape, dtype), at_most):
        own = (count, *shape[1:]) if len(shape) > 1 else shape
        yield Slot(name, own, dtype, math.prod(own) * dtype.itemsize, 0, first)


def row_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a row, the smallest piece; of all of a tensor with fewer than two dimensions."""
    return math.prod(shape[1:] if len(shape) > 1 else shape) * dtype.itemsize


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
