"""The inner loop of `weights.digest` on a processor, compiled by numba for the instructions that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_WORDS, _FACTORS = "int32[:, ::1]", "int64[:, ::1]"
SIGNATURE = f"void({_WORDS}, {_WORDS}, {_WORDS}, int64, int64, {_FACTORS}, {_FACTORS}, {_FACTORS}, int64[::1])"


def weighted_sums(
    words_RC: Any,
    source_RC: Any,
    target_RC: Any,
    word: int,
    row: int,
    a_2R: Any,
    e_2K: Any,
    b_2N: Any,
    sums_2: Any,
) -> None:
    """Add Σ_r a_r · Σ_k e_k · Σ_n b_n · x_rkn to both sums, modulo 2^64.

    If the target has rows, the source is copied to it block by block, and each block of the words, which are the source
    or the target, is added just after it was copied. The three must have one shape then: the loop does not check it.

    Rows and columns are counted from `row` and `word` on. The factors of a block, of N words, stay in the processor's
    nearest cache, so memory is read once and in order. Processors multiply several pairs of 32-bit numbers at once; the
    conversion tells the compiler that b fits into 32 bits.
    """
    size, stop = b_2N.shape[1], word + words_RC.shape[1]
    for r in range(words_RC.shape[0]):
        row_0, row_1 = np.int64(0), np.int64(0)
        for k in range(word // size, (stop - 1) // size + 1):
            start, end = max(word, k * size), min(stop, (k + 1) * size)
            if len(target_RC):
                source, target = source_RC[r, start - word : end - word], target_RC[r, start - word : end - word]
                for n in range(len(source)):
                    target[n] = source[n]
            words = words_RC[r, start - word : end - word]
            b_0, b_1 = b_2N[0, start - k * size :], b_2N[1, start - k * size :]
            block_0, block_1 = np.int64(0), np.int64(0)
            for n in range(len(words)):
                x = np.int64(words[n])
                block_0 += x * np.int64(np.int32(b_0[n]))
                block_1 += x * np.int64(np.int32(b_1[n]))
            row_0 += block_0 * e_2K[0, k]
            row_1 += block_1 * e_2K[1, k]
        sums_2[0] += row_0 * a_2R[0, row + r]
        sums_2[1] += row_1 * a_2R[1, row + r]


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile, or load what an earlier process compiled from numba's folder; if that is unusable, compile each time."""
    try:
        found: Callable[..., None] = numba.njit(SIGNATURE, cache=True, nogil=True)(function)
    except Exception:  # it cannot be written, is full or holds a damaged file; any other reason comes again
        found = numba.njit(SIGNATURE, nogil=True)(function)
    return found


add_weighted_sums = compiled(weighted_sums)
