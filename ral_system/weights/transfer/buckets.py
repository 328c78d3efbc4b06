"""Weights bucket by bucket: each side needs memory for one, whatever the model's size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ral_system.types import WeightManifest

BUCKET_BYTES = 128 << 20
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
    """Tensors that travel together."""

    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        """Bytes of the buffer."""
        return self.slots[-1].end

    def views(self, buffer: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors in a buffer."""
        for slot in self.slots:
            yield slot.name, slot.view(buffer)


def buckets(manifest: WeightManifest, names: Sequence[str], at_most: int = BUCKET_BYTES) -> list[Bucket]:
    """Deal the named tensors, in this order, to buckets of `at_most` bytes; a larger tensor has one to itself.

    Sender and receivers come to the same buckets.
    """
    found: list[list[Slot]] = []
    end = at_most
    for name in names:
        entry = manifest.tensors[name]
        slot = Slot(name, entry.shape, getattr(torch, entry.dtype), -(-end // _ALIGNED) * _ALIGNED)
        if slot.end > at_most:
            slot = Slot(name, entry.shape, slot.dtype, 0)
            found.append([])
        found[-1].append(slot)
        end = slot.end
    return [Bucket(tuple(slots)) for slots in found]
