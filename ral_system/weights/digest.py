"""Checksums of tensors, computed on the device that holds them, and of parts of tensors, which add up to the whole's.

With x the bit patterns of a tensor's elements as integers, laid out as a matrix whose rows are the first dimension:

    S = Σ_rc a_r · b_c · x_rc   (mod 2^64)

for two independent pairs of fixed, odd, random-looking a and b. An odd factor has an inverse modulo 2^64, so one
changed element changes both sums for sure; of other changes, at most about one in 2^64 goes unseen. Because S is a sum
over elements, engines that hold parts of a tensor (tensor parallelism, fused matrices) each compute their part of it.
An element of 8 bytes counts as two of 4, the second with a b of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ral_system.errors import WeightSyncError
from ral_system.types import TensorDigest

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
AT_ONCE = {"cpu": 1 << 15, "cuda": 1 << 23}
"""Elements whose products are in memory together: what fits into a core's cache, or keeps a GPU busy."""
_BITS = 64


@dataclass(frozen=True, slots=True)
class Region:
    """Part of a contiguous tensor of `shape`: the strided view with this offset, in elements. May be all of it."""

    shape: tuple[int, ...]
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Region:
        """The region that is the tensor."""
        return cls.of(torch.empty(tuple(shape), device="meta"), shape)

    @classmethod
    def of(cls, view: Tensor, shape: Sequence[int]) -> Region:
        """The region that `view` shows of a contiguous tensor of `shape`."""
        return cls(tuple(shape), int(view.storage_offset()), tuple(view.shape), tuple(view.stride()))

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.sizes)

    def view(self, whole: Tensor) -> Tensor:
        """The region of a contiguous tensor of `shape`."""
        return whole.as_strided(self.sizes, self.strides, whole.storage_offset() + self.offset)


def digest(tensor: Tensor) -> TensorDigest:
    """Identity of a tensor: shape, dtype and checksum of its elements, whatever its memory layout."""
    return digest_of_sums(tensor.shape, tensor.dtype, as_numbers(sums(tensor, Region.whole(tensor.shape))))


def digest_of_sums(shape: Sequence[int], dtype: torch.dtype, numbers: Sequence[int]) -> TensorDigest:
    """The digest of a tensor with these two sums."""
    return TensorDigest(tuple(shape), dtype_name(dtype), "".join(f"{number % (1 << _BITS):016x}" for number in numbers))


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype in manifests, for example `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def as_numbers(sums_2: Tensor) -> tuple[int, int]:
    """The two sums as Python's numbers. Waits for the device."""
    first, second = sums_2.tolist()
    return first, second


@torch.no_grad()
def sums(part: Tensor, region: Region) -> Tensor:
    """The share of `part` in both sums of the tensor that it is this region of: two int64 on the part's device.

    Raises WeightSyncError for a region whose rows are not parts of the tensor's rows.
    """
    total = torch.zeros(2, dtype=torch.int64, device=part.device)
    if not part.numel():
        return total
    rows_2R, *columns = _factors(region, part.device)
    matrix_RC = part.reshape(rows_2R.shape[1], columns[0].shape[1])
    wide, kind = part.element_size() == 8, _INTEGERS[min(4, part.element_size())]
    step = max(1, AT_ONCE[part.device.type] // matrix_RC.shape[1])
    for start in range(0, matrix_RC.shape[0], step):
        chunk = matrix_RC[start : start + step].contiguous()
        words = chunk.view(torch.int32).unflatten(1, (-1, 2)).unbind(2) if wide else (chunk.view(kind),)
        for x_RC, factors_2C in zip(words, columns, strict=False):
            by_row_2R = (x_RC.to(torch.int64) * factors_2C[:, None]).sum(2)
            total += (by_row_2R * rows_2R[:, start : start + step]).sum(1)
    return total


@cache
def _factors(region: Region, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """a of the region's rows and b of its columns, for both sums: [2, rows], [2, columns]; b of second words."""
    row_length = math.prod(region.shape[1:]) if len(region.shape) > 1 else math.prod(region.shape)
    first_row, first_column = divmod(region.offset, row_length)
    sizes, strides = region.sizes, region.strides
    by_rows = len(region.shape) > 1 and bool(sizes) and strides[0] % row_length == 0
    count, apart = (sizes[0], max(1, strides[0] // row_length)) if by_rows else (1, 1)
    inner = (sizes[1:], strides[1:]) if by_rows else (sizes, strides)
    last = first_column + sum((size - 1) * stride for size, stride in zip(*inner, strict=True))
    if last >= row_length:
        raise WeightSyncError(f"an engine keeps a part of a tensor of {list(region.shape)} that no checksum covers")
    rows = _odd(0, first_row + count * apart, device)[:, first_row::apart][:, :count]
    first, second = (
        b.as_strided((2, *inner[0]), (b.stride(0), *inner[1]), first_column).reshape(2, -1)
        for b in (_odd(2, row_length, device), _odd(4, row_length, device))
    )
    return rows, first, second


def _odd(stream: int, count: int, device: torch.device) -> Tensor:
    """Odd 64-bit numbers that look random, two sequences of at least `count` (splitmix64's finaliser)."""
    return _sequences(stream, 1 << max(10, (count - 1).bit_length()), device)


@cache
def _sequences(stream: int, count: int, device: torch.device) -> Tensor:
    first = torch.tensor([[stream << 40], [(stream + 1) << 40]], device=device)
    z = (first + torch.arange(count, device=device)) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return (z ^ _shifted(z, 31)) | 1


def _signed(constant: int) -> int:
    return constant - (1 << _BITS) if constant >> (_BITS - 1) else constant


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right as unsigned numbers."""
    return (z >> bits) & ((1 << (_BITS - bits)) - 1)
