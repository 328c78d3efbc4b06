"""Checksums of tensors, computed on the device that holds them, and of parts of tensors, which add up to the whole's.

With x the bytes of a tensor's elements as signed numbers, laid out as a matrix whose rows are the first dimension:

    S = Σ_r a_r · Σ_n g_n · Σ_c w_nc · x_rc   (mod 2^64)

for two independent pairs of fixed, random-looking a and g. The inner sums have 16 small weights w_n for each byte of a
row: products of bytes, added up exactly. All of a byte's factors together are an odd number, which has an inverse
modulo 2^64, so one changed byte changes both sums for sure; of other changes, at most about one in 2^64 goes unseen.
Because S is a sum over elements, engines that hold parts of a tensor (tensor parallelism, fused matrices) each compute
their part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ral_system.errors import WeightSyncError
from ral_system.types import TensorDigest

SUMS = 2
AT_ONCE = {"cpu": 4 << 20, "cuda": 32 << 20}
"""Bytes that are multiplied together, as many as keep the device busy; up to 8 bytes of memory for each."""
_WEIGHTS = 16
_COLUMNS_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 10}
"""Bytes of a row that are added up at once: with weights of at most 64, exactly in int32, or in float32 on a GPU."""
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

    @property
    def row_length(self) -> int:
        """Elements of the tensor's rows; a tensor of one dimension is one row."""
        return max(1, math.prod(self.shape[1:] if len(self.shape) > 1 else self.shape))

    @property
    def by_rows(self) -> bool:
        """Whether its first dimension counts rows of the tensor. If not, it should be in one row."""
        return len(self.shape) > 1 and bool(self.sizes) and self.strides[0] % self.row_length == 0

    @property
    def rows(self) -> range:
        """Which of the tensor's rows it has elements of."""
        first = self.offset // self.row_length
        count, apart = (self.sizes[0], max(1, self.strides[0] // self.row_length)) if self.by_rows else (1, 1)
        return range(first, first + count * apart, apart)

    def within(self, first: int, piece: Sequence[int]) -> tuple[slice, Region] | None:
        """Find this region's rows in a piece of the tensor: their indices, and where they are as a region of the piece.

        The piece has this shape and begins at the tensor's row `first`. None if it holds nothing of the region, or
        comes from a tensor of another shape.
        """
        if tuple(piece) == self.shape:
            return slice(0, len(self.rows)), self
        if len(piece) != len(self.shape) or tuple(piece[1:]) != self.shape[1:]:
            return None
        start, stop = (max(0, -(-(row - self.rows.start) // self.rows.step)) for row in (first, first + piece[0]))
        stop = min(stop, len(self.rows))
        if start >= stop:
            return None
        sizes = (stop - start, *self.sizes[1:]) if self.by_rows else self.sizes
        offset = self.offset + (start * self.rows.step - first) * self.row_length
        return slice(start, stop), Region(tuple(piece), offset, sizes, self.strides)

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


def as_numbers(sums_S: Tensor) -> tuple[int, ...]:
    """The sums as Python's numbers. Waits for the device."""
    return tuple(sums_S.tolist())


@torch.no_grad()
def sums(part: Tensor, region: Region, first: int = 0) -> Tensor:
    """The share of `part` in both sums of the tensor that it is this region of: two int64 on the part's device.

    The part may be some of the region's rows, from the one with the index `first` on. Raises WeightSyncError for a
    region whose rows are not parts of the tensor's rows.
    """
    total = torch.zeros(SUMS, dtype=torch.int64, device=part.device)
    if not part.numel():
        return total
    rows_2R, weights_CN = _factors(region, part.element_size(), part.device)
    combined_21N = _combined(part.device)
    count = part.shape[0] if region.by_rows else 1
    matrix_RC, rows_2R = part.reshape(count, -1), rows_2R[:, first : first + count]
    step = max(1, AT_ONCE[part.device.type] // (weights_CN.shape[0] + _WEIGHTS**2))  # with the sums of short rows
    for start in range(0, matrix_RC.shape[0], step):
        bytes_RC = matrix_RC[start : start + step].contiguous().view(torch.int8)
        by_sum_2R = (_products(bytes_RC, weights_CN) * combined_21N).sum(2)
        total += (by_sum_2R * rows_2R[:, start : start + step]).sum(1)
    return total


def _products(bytes_RC: Tensor, weights_CN: Tensor) -> Tensor:
    """The matrix product of signed bytes, exactly, in int64."""
    device = bytes_RC.device.type
    step, multiply = _COLUMNS_AT_ONCE[device], _MULTIPLY[device]
    first, *others = (
        multiply(x_RC, w_CN).to(torch.int64)
        for x_RC, w_CN in zip(bytes_RC.split(step, 1), weights_CN.split(step), strict=True)
    )
    return sum(others, first)


def in_float32(bytes_RC: Tensor, weights_CN: Tensor) -> Tensor:
    """The product of at most 1024 columns: float32 and TF32 hold all numbers, products and sums exactly."""
    return bytes_RC.float() @ weights_CN.float()


_MULTIPLY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cpu": torch._int_mm, "cuda": in_float32}
"""torch's product of bytes has conditions on shapes on a GPU."""


@cache
def _factors(region: Region, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """a of the region's rows, for both sums, [2, rows], and w of the bytes of its columns, [columns · width, weights].

    An element has `width` bytes.
    """
    row_length, of_rows = region.row_length, region.rows
    first_column = region.offset % row_length
    sizes, strides = (each[1:] if region.by_rows else each for each in (region.sizes, region.strides))
    last = first_column + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if last >= row_length:
        raise WeightSyncError(
            f"the engine holds a part of a tensor of {list(region.shape)} that goes over the ends of its rows, so it "
            "cannot be verified; set rollout=hf"
        )
    rows = _odd(_power_of_two(of_rows.stop), device)[:, of_rows.start : of_rows.stop : of_rows.step]
    each = width * _WEIGHTS
    weights = _small(_power_of_two(row_length * width), device).view(-1, each)
    columns = weights.as_strided((*sizes, each), (*(each * stride for stride in strides), 1), first_column * each)
    return rows, columns.reshape(-1, _WEIGHTS)


@cache
def _small(count: int, device: torch.device) -> Tensor:
    """w of `count` bytes of a row: numbers from -64 to 63, the first of each byte odd.

    Small enough for processors that add products in pairs of 16 bits.
    """
    weights = _sequences(2, count, device).T.contiguous().view(torch.int8) >> 1
    weights[:, 0] |= 1
    return weights


@cache
def _combined(device: torch.device) -> Tensor:
    """g, for both sums, [2, 1, weights]: the first odd and the others even, so a byte's factors together are odd."""
    numbers = _sequences(4, _WEIGHTS, device)
    return torch.cat([numbers[:, :1] | 1, numbers[:, 1:] & ~1], 1)[:, None]


@cache
def _odd(count: int, device: torch.device) -> Tensor:
    """a of `count` rows, for both sums."""
    return _sequences(0, count, device) | 1


def _power_of_two(count: int) -> int:
    """The next one from `count` on, so few different sequences are kept."""
    return 1 << max(10, (count - 1).bit_length())


def _sequences(stream: int, count: int, device: torch.device) -> Tensor:
    """Two sequences of 64-bit numbers that look random (splitmix64's finaliser)."""
    first = torch.tensor([[stream << 40], [(stream + 1) << 40]], device=device)
    z = (first + torch.arange(count, device=device)) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _signed(constant: int) -> int:
    return constant - (1 << _BITS) if constant >> (_BITS - 1) else constant


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right as unsigned numbers."""
    return (z >> bits) & ((1 << (_BITS - bits)) - 1)
