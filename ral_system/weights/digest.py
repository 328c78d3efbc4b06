"""Checksums of tensors, computed on the device that holds them, and of parts of tensors, which add up to the whole's.

With x the bytes of a tensor in words of 8, each row of its first dimension filled up with zeros, 16 sums

    S_i = Σ_r Σ_c (a_ir + b_ic) · x_rc   (mod 2^64)

with fixed, random-looking a and b. They take the sums of words in each row, to be multiplied by a, and in each column,
by b. The checksum is a hash of all S_i. These are sums over elements, so engines that hold parts of a tensor (tensor
parallelism, fused matrices) each compute their part of them.

All a_0r are odd and all b_0c even, and an odd number has an inverse modulo 2^64, so one changed word changes S_0 for
sure. Another change goes unseen with a probability of at most 2^(-15·(64 - k)), k being the lowest bit in which the sum
of any row or column changed: 2^-15 if nothing but the highest bits of words did. One that leaves the sums of all rows
and all columns as they were, such as opposite changes at the corners of a rectangle, is not seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ral_system.errors import WeightSyncError
from ral_system.types import TensorDigest

AT_ONCE = {"cpu": 512 << 10, "cuda": 32 << 20}
"""Bytes that are read twice, from the processor's own memory the second time; up to 8 bytes of memory for each."""
SUMS = 16
_WORD = 8
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
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
    """The digest of a tensor with these sums."""
    content = b"".join((number % (1 << _BITS)).to_bytes(_BITS // 8, "little") for number in numbers)
    return TensorDigest(tuple(shape), dtype_name(dtype), hashlib.sha256(content).hexdigest()[:32])


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype in manifests, for example `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def as_numbers(sums_S: Tensor) -> tuple[int, ...]:
    """The sums as Python's numbers. Waits for the device."""
    return tuple(sums_S.tolist())


@torch.no_grad()
def sums(part: Tensor, region: Region, first: int = 0) -> Tensor:
    """The share of `part` in the sums of the tensor that it is this region of: SUMS int64 on the part's device.

    The part may be some of the region's rows, from the one with the index `first` on. Raises WeightSyncError for a
    region whose rows are not parts of the tensor's rows.
    """
    if not part.numel():
        return torch.zeros(SUMS, dtype=torch.int64, device=part.device)
    factors = _factors(region, part.element_size(), part.device)
    count = part.shape[0] if region.by_rows else 1
    matrix_RC = part.reshape(count, -1)
    by_row_R = torch.empty(count, dtype=torch.int64, device=part.device)
    by_column_C = torch.zeros_like(factors.columns[0])
    step = max(1, AT_ONCE[part.device.type] // (matrix_RC.shape[1] * part.element_size()))
    for rows_RC, found in zip(matrix_RC.split(step), by_row_R.split(step), strict=True):
        words_RC = _words(rows_RC, factors.shifts)
        torch.sum(words_RC, 1, out=found)
        by_column_C += words_RC.sum(0)
    return (factors.rows[:, first : first + count] * by_row_R).sum(1) + (factors.columns * by_column_C).sum(1)


def _words(elements_RC: Tensor, shifts_C: Tensor | None) -> Tensor:
    """The elements as words, or, with shifts, as the share of each in its word."""
    width = elements_RC.element_size()
    if shifts_C is None:
        together_RC = elements_RC.contiguous()
        aligned = together_RC.storage_offset() * width % _WORD == 0
        return (together_RC if aligned else together_RC.clone()).view(torch.int64)
    unsigned_RC = elements_RC.view(_INTEGERS[width]).to(torch.int64) & ((1 << 8 * width) - 1)
    return unsigned_RC << shifts_C


@dataclass(frozen=True, slots=True)
class _Factors:
    """a and b of a region, of its rows and of the columns of its words."""

    rows: Tensor  # [SUMS, rows]
    columns: Tensor  # [SUMS, words of a row], or its elements if there are shifts
    shifts: Tensor | None
    """Bits by which each element is shifted in its word, unless the region consists of whole words."""


@cache
def _factors(region: Region, width: int, device: torch.device) -> _Factors:
    """Find the factors of a region whose elements have `width` bytes."""
    row_length, rows = region.row_length, region.rows
    first_column = region.offset % row_length
    sizes, strides = (each[1:] if region.by_rows else each for each in (region.sizes, region.strides))
    last = first_column + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if last >= row_length:
        raise WeightSyncError(
            f"the engine holds a part of a tensor of {list(region.shape)} that goes over the ends of its rows, so it "
            "cannot be verified; set rollout=hf"
        )
    of_rows = _of_rows(_power_of_two(rows.stop), device)
    columns = _of_columns(_power_of_two(row_length * width // _WORD + 1), device)
    bytes_C = torch.arange(row_length, device=device).as_strided(sizes, strides, first_column).reshape(-1) * width
    together = _WORD // width
    first_C = bytes_C[::together]
    whole = torch.equal(bytes_C, (first_C[:, None] + torch.arange(0, _WORD, width, device=device)).reshape(-1))
    if whole and not (first_C % _WORD).any():
        bytes_C, shifts_C = first_C, None
    else:
        shifts_C = bytes_C % _WORD * 8
    return _Factors(of_rows[:, rows.start : rows.stop : rows.step], columns[:, bytes_C // _WORD], shifts_C)


@cache
def _of_rows(count: int, device: torch.device) -> Tensor:
    """a of `count` rows."""
    numbers_SR = _sequences(0, count, device)
    numbers_SR[0] |= 1
    return numbers_SR


@cache
def _of_columns(count: int, device: torch.device) -> Tensor:
    """b of `count` columns."""
    numbers_SC = _sequences(SUMS, count, device)
    numbers_SC[0] &= ~1
    return numbers_SC


def _power_of_two(count: int) -> int:
    """The next one from `count` on, so few different sequences are kept."""
    return 1 << max(10, (count - 1).bit_length())


def _sequences(stream: int, count: int, device: torch.device) -> Tensor:
    """SUMS sequences of 64-bit numbers that look random (splitmix64's finaliser)."""
    streams_S = torch.arange(stream, stream + SUMS, device=device)
    z = ((streams_S[:, None] << 40) + torch.arange(count, device=device)) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _signed(constant: int) -> int:
    return constant - (1 << _BITS) if constant >> (_BITS - 1) else constant


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right as unsigned numbers."""
    return (z >> bits) & ((1 << (_BITS - bits)) - 1)
