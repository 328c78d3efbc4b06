"""Weights bucket by bucket: each side needs memory for a few, or for the largest tensor, whatever the model's size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ral_system.types import WeightManifest

BUCKET_BYTES = 16 << 20
_TOGETHER = 4
"""Full buckets in the memory of a version."""
_ALIGNED = 16


@dataclass(frozen=True, slots=True)
class Slot:
    """Bytes of a buffer that a tensor takes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int

    @property
    def end(self) -> int:
        """Where its bytes end."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize

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
    """Index of the last bucket before it that was in the same place, -1 for the first ones."""

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

    def views(self, buffer: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors in a buffer."""
        for slot in self.slots:
            yield slot.name, slot.view(buffer)


def buckets(manifest: WeightManifest, names: Sequence[str], at_most: int = BUCKET_BYTES) -> list[Bucket]:
    """Deal the named tensors, in this order, to buckets of `at_most` bytes; a larger tensor has one to itself.

    They follow each other in memory; one that would not fit begins at the start again. So one can be filled while
    others are read. Sender and receivers come to the same buckets.
    """
    dealt: list[list[Slot]] = []
    end = at_most
    for name in names:
        entry = manifest.tensors[name]
        slot = Slot(name, entry.shape, getattr(torch, entry.dtype), _aligned(end))
        if slot.end > at_most:
            slot = Slot(name, entry.shape, slot.dtype, 0)
            dealt.append([])
        dealt[-1].append(slot)
        end = slot.end
    room = max(_TOGETHER * at_most, *(slots[-1].end for slots in dealt)) if dealt else 0
    found: list[Bucket] = []
    for index, slots in enumerate(dealt):
        size, start = slots[-1].end, _aligned(found[-1].end) if found else 0
        start = start if start + size <= room else 0
        before = (b.index for b in reversed(found) if b.start < start + size and start < b.end)
        found.append(Bucket(index, tuple(slots), start, next(before, -1)))
    return found


def memory_of(largest: int, at_most: int = BUCKET_BYTES) -> int:
    """Bytes of the memory, at most, that holds the buckets of a model with this largest tensor."""
    return max(_TOGETHER * at_most, largest)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
