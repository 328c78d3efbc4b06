"""Checksums of tensors, computed on the device that holds them, and of parts of tensors, which add up to the whole's.

With x the tensor as a matrix whose rows are the first dimension, each row read as blocks of signed numbers of 32 bits:

    S = Σ_r a_r · Σ_k e_k · Σ_n b_n · x_rkn   (mod 2^64)

for two independent triples of a, e and b: fixed, random-looking odd numbers, of 64, 64 and 32 bits. An odd number has
an inverse modulo 2^64, so one changed x changes both sums for sure. Of other changes about one in 2^62 goes unseen: x
and b together have 63 bits, so even the highest bits of x have 32 bits of each sum to show in. If all elements of a
rectangle change alike it is about one in 2^46, since factors add up before they are multiplied. The factors are known:
this finds errors, not forgeries. Because S is a sum, engines that hold parts of a tensor (tensor parallelism, fused
matrices) each compute their part of it.
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
"""Bytes that are read together, as many as keep the device busy; for products a GPU needs up to three times as many."""
_WORD = 4
"""Bytes of an x. What is missing at the end of a row counts as zeros."""
_BLOCK = 512
"""Words that have one e: their b, for both sums, fit in a processor's nearest cache."""
_COLUMNS = 512 * _BLOCK
"""Words of a row whose factors torch computes at once."""
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

    @cache  # noqa: B019 (the same pieces come with each version)
    def within(self, first: int, piece: tuple[int, ...]) -> tuple[slice, Region] | None:
        """Find this region's rows in a piece of the tensor: their indices, and where they are as a region of the piece.

        The piece has this shape and begins at the tensor's row `first`. None if it holds nothing of the region, or
        comes from a tensor of another shape.
        """
        if piece == self.shape:
            return slice(0, len(self.rows)), self
        if len(piece) != len(self.shape) or piece[1:] != self.shape[1:]:
            return None
        own = self.rows
        start, stop = (max(0, -(-(row - own.start) // own.step)) for row in (first, first + piece[0]))
        stop = min(stop, len(own))
        if start >= stop:
            return None
        sizes = (stop - start, *self.sizes[1:]) if self.by_rows else self.sizes
        offset = self.offset + (start * own.step - first) * self.row_length
        return slice(start, stop), Region(piece, offset, sizes, self.strides)

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


def sums(part: Tensor, region: Region) -> Tensor:
    """The share of a region in both sums of its tensor: two int64 on the device of `part`, which is the region."""
    total = torch.zeros(SUMS, dtype=torch.int64, device=part.device)
    add_sums(total, part.detach(), region)
    return total


def add_sums(sums_2: Tensor, part: Tensor, region: Region, first: int = 0) -> None:
    """Add the share of `part` in both sums of the tensor that it is this region of.

    The part may be some of the region's rows, from the one with the index `first` on. Raises WeightSyncError for a
    region whose rows are not parts of the tensor's rows, ValueError for a part of another shape.
    """
    if not part.numel():
        return
    reader = _reader(region, part.element_size(), part.device)
    rows = reader.rows_of(part, first)
    step = max(1, AT_ONCE[part.device.type] // (_WORD * reader.words))
    for start in range(0, len(rows), step):
        reader.add(rows[start : start + step], first + start, sums_2)


def copy_and_add_sums(
    sums_2: Tensor,
    part: Tensor,
    place: Tensor,
    region: Region,
    first: int = 0,
    *,
    read_back: torch.dtype | None = None,
) -> None:
    """Copy `part` to `place` and add its share, as `add_sums` does; or, to read back, that of `place` in this dtype.

    On a CPU one loop does both, if dtypes are equal and rows contiguous: each block is read while it is in the
    processor's cache. Raises ValueError if shapes differ.
    """
    if part.shape != place.shape:
        raise ValueError(f"{list(part.shape)} cannot be copied to {list(place.shape)}")
    alike = part.dtype == place.dtype == (read_back or part.dtype)
    if alike and part.numel() and part.device.type == place.device.type == "cpu":
        reader = _reader(region, part.element_size(), part.device)
        if reader.copy(part, place, first, sums_2, of_place=read_back is not None):
            return
    place.copy_(part)
    add_sums(sums_2, part if read_back is None else place.to(read_back), region, first)


class _Reader:
    """Reads the rows of a region as 32-bit numbers, `words` of them per row, and multiplies them by their factors."""

    def __init__(self, region: Region, width: int, device: torch.device) -> None:
        self._region, self.by_rows = region, region.by_rows
        first = region.offset % region.row_length
        sizes, strides = (each[1:] if self.by_rows else each for each in (region.sizes, region.strides))
        stop = 1 + first + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if stop > region.row_length:
            raise WeightSyncError(
                f"the engine holds a part of a tensor of {list(region.shape)} that goes over the ends of its rows, so "
                "it cannot be verified; set rollout=hf"
            )
        self._first, end = first * width // _WORD, -(-stop * width // _WORD)
        self.words = end - self._first
        self._room = self.words * _WORD // width  # elements
        self._before = first - self._first * _WORD // width  # of these, before the region's first one
        self._sizes, self._strides = sizes, (self._room, *strides)
        self._filled = math.prod(sizes) == self._room and torch.empty(sizes, device="meta").stride() == strides
        rows = self._rows = region.rows
        a_2R = _odd(0, _power_of_two(rows.stop), device)[:, rows.start : rows.stop : rows.step].contiguous()
        self._add = ADD[device.type](a_2R, _of_words(device), _odd(4, _power_of_two(-(-end // _BLOCK)), device))

    def rows_of(self, part: Tensor, first: int) -> Tensor:
        """View a part as rows of the region. Raises ValueError if it is not the ones from the index `first` on."""
        rows = part if self.by_rows else part[None]
        if rows.shape[1:] != self._sizes or not 0 <= first <= len(self._rows) - rows.shape[0]:
            raise ValueError(f"{list(part.shape)} from row {first} on is not a part of {self._region}")
        return rows

    def add(self, rows: Tensor, first: int, sums_2: Tensor) -> None:
        """Add the share of rows, from the region's with the index `first` on, to both sums."""
        words_RC = self._in_place(rows.contiguous())
        if words_RC is None:
            filled = rows.new_zeros(rows.shape[0], self._room)
            filled.as_strided(rows.shape, self._strides, self._before).copy_(rows)
            words_RC = _as_words(filled)
        self._add(words_RC, self._first, first, sums_2)

    def copy(self, part: Tensor, place: Tensor, first: int, sums_2: Tensor, *, of_place: bool) -> bool:
        """Do `copy_and_add_sums` in one loop if both can be read in place; return whether they can."""
        part_RC, place_RC = (self._in_place(self.rows_of(each, first)) for each in (part, place))
        if part_RC is None or place_RC is None:
            return False
        self._add(place_RC if of_place else part_RC, self._first, first, sums_2, part_RC, place_RC)
        return True

    def _in_place(self, rows: Tensor) -> Tensor | None:
        """View rows as 32-bit numbers, [rows, words].

        None if that takes a copy: rows are not contiguous or begin inside a word, or words hold other rows' elements.
        """
        if not self._filled or rows.storage_offset() * rows.element_size() % _WORD or not rows.is_contiguous():
            return None
        return _as_words(rows)


def _as_words(rows: Tensor) -> Tensor:
    return rows.view(-1).view(torch.int32).view(len(rows), -1)


_reader = cache(_Reader)
AddRows = Callable[..., None]
"""Adds to both sums: called with words of some rows, the index of the first word and of the first row, and the sums.

On a CPU it can be called with two more arguments: words that are copied on the way, and the words that they replace.
"""


def on_cpu(a_2R: Tensor, b_2N: Tensor, e_2K: Tensor) -> AddRows:
    """Add in a compiled loop."""
    from ral_system.weights import cpu_sums  # importing its compiler takes 0.3 s

    factors = [tensor.numpy() for tensor in (a_2R, e_2K, b_2N)]
    nothing = torch.empty((0, 0), dtype=torch.int32)

    def add(
        words_RC: Tensor, word: int, row: int, sums_2: Tensor, source_RC: Tensor = nothing, target_RC: Tensor = nothing
    ) -> None:
        words = [tensor.numpy() for tensor in (words_RC, source_RC, target_RC)]
        cpu_sums.add_weighted_sums(*words, word, row, *factors, sums_2.numpy())

    return add


def with_torch(a_2R: Tensor, b_2N: Tensor, e_2K: Tensor) -> AddRows:
    """Add by torch's operations, on any device."""

    def add(words_RC: Tensor, word: int, row: int, sums_2: Tensor) -> None:
        for near_RC in words_RC.split(_COLUMNS, 1):
            rows, words = near_RC.shape
            columns = torch.arange(word, word + words, device=near_RC.device)
            for i in range(SUMS):
                factors_C = e_2K[i, columns // _BLOCK] * b_2N[i, columns % _BLOCK]
                sums_2[i] += ((near_RC * factors_C).sum(1) * a_2R[i, row : row + rows]).sum()
            word += words

    return add


ADD = {"cpu": on_cpu, "cuda": with_torch}


@cache
def _of_words(device: torch.device) -> Tensor:
    """b of a block's words, for both sums, [2, words]: the upper halves of 64-bit numbers."""
    return (_odd(2, _BLOCK, device) >> 32) | 1


@cache
def _odd(stream: int, count: int, device: torch.device) -> Tensor:
    """Two sequences of odd numbers."""
    return _sequences(stream, count, device) | 1


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
