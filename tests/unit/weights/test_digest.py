"""Checksums against slow arithmetic, the sum of parts, and every kind of damage."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from ral_system.errors import WeightSyncError
from ral_system.weights import cpu_sums
from ral_system.weights.digest import (
    SUMS,
    Region,
    add_sums,
    as_numbers,
    copy_and_add_sums,
    digest,
    digest_of_sums,
    on_cpu,
    sums,
    with_torch,
)

MASK = (1 << 64) - 1


def splitmix(stream: int, index: int) -> int:
    z = ((stream << 40) + index) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def factor(i: int, place: int) -> int:
    """The factor of the 32-bit number at a place of its row, for the i-th sum."""
    upper = splitmix(2 + i, place % 512) >> 32 | 1
    of_word = upper - (1 << 32) if upper >> 31 else upper
    return of_word * (splitmix(4 + i, place // 512) | 1) & MASK


def slow(tensor: torch.Tensor) -> str:
    matrix = tensor.reshape(tensor.shape[0], -1) if tensor.ndim > 1 else tensor.reshape(1, -1)
    rows = [bytes(row) for row in matrix.contiguous().view(torch.uint8).tolist()]
    words = [
        [int.from_bytes(row[at : at + 4].ljust(4, b"\0"), "little", signed=True) for at in range(0, len(row), 4)]
        for row in rows
    ]
    found = [
        sum((splitmix(i, r) | 1) * factor(i, c) * x for r, row in enumerate(words) for c, x in enumerate(row)) & MASK
        for i in (0, 1)
    ]
    return "".join(f"{number:016x}" for number in found)


def test_top_bits_of_two_wide_elements_are_seen() -> None:
    tensor = torch.randn(3, 4, dtype=torch.float64)
    assert digest(tensor) != digest(-tensor)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8]
)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (4, 0), (2, 3, 4), (2, 1, 3, 2), (2, 1100)])
def test_equals_slow_arithmetic(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensor = (100 * torch.randn(shape)).to(dtype)
    found = digest(tensor)
    assert (found.shape, found.dtype) == (shape, str(dtype).removeprefix("torch."))
    assert found.checksum == slow(tensor)


def test_is_of_values_not_of_memory_layout() -> None:
    tensor = torch.randn(5, 4)
    assert digest(tensor.T) == digest(tensor.T.contiguous()) != digest(tensor)


def test_many_rows_are_summed_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(37, 11)
    whole = digest(tensor)
    monkeypatch.setattr("ral_system.weights.digest.AT_ONCE", {"cpu": 4 * 300})
    assert digest(tensor) == whole


@pytest.mark.parametrize("word", [0, 1, 511, 1030])
def test_torch_adds_the_same_as_the_compiled_loop(word: int) -> None:
    """A GPU adds with torch."""
    words_RC = torch.randint(-(2**31), 2**31, (5, 1500), dtype=torch.int32)
    a_2R, e_2K = (torch.randint(-(2**63), 2**63 - 1, (2, count)) for count in (8, 6))
    b_2N = torch.randint(-(2**31), 2**31, (2, 512))
    found = []
    for way in (on_cpu, with_torch):
        sums_2 = torch.tensor([3, -4])
        way(a_2R, b_2N, e_2K)(words_RC, word, 3, sums_2)
        found.append(sums_2.tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_is_of_values_not_of_where_in_memory_they_are(offset: int) -> None:
    values = torch.arange(24, dtype=torch.bfloat16)
    memory = torch.zeros(32, dtype=torch.bfloat16)
    memory[offset : offset + 24] = values
    assert digest(memory[offset : offset + 24].view(4, 6)) == digest(values.view(4, 6))


@pytest.mark.parametrize("stride", [(1, 7), (7, 1)])
def test_one_column_of_wide_elements(stride: tuple[int, int]) -> None:
    column = torch.arange(50.0, dtype=torch.float64).as_strided((5, 1), stride)
    assert digest(column) == digest(column.clone(memory_format=torch.contiguous_format))


@pytest.mark.parametrize(
    "shape, first", [((3, 4), 0), ((2, 4), 1), ((1, 4), -1), ((2, 8), 0), ((2, 1), 0), ((2, 2, 2), 0)]
)
def test_a_part_of_another_shape_is_an_error(shape: tuple[int, ...], first: int) -> None:
    with pytest.raises(ValueError, match=f"from row {first} on is not a part of"):
        add_sums(torch.zeros(SUMS, dtype=torch.int64), torch.zeros(shape), Region.whole((2, 4)), first)


@pytest.mark.parametrize("damage", ["sealed", "nbi", "nbc"])
def test_a_folder_of_compiled_code_that_cannot_be_used_is_no_obstacle(tmp_path: Path, damage: str) -> None:
    """Compiled code is kept beside the source or in the user's folder, if one can be written."""
    (tmp_path / "cpu_sums.py").write_text(Path(cpu_sums.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    own = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "cpu_sums.py"), "PYTHONDONTWRITEBYTECODE": "1"}

    def kept() -> str:
        command = [sys.executable, "-c", "import cpu_sums; print(type(cpu_sums.add_weighted_sums._cache).__name__)"]
        return subprocess.run(
            command, cwd=tmp_path, env=own, stdout=subprocess.PIPE, text=True, check=True, timeout=60
        ).stdout.strip()

    cache = tmp_path / "__pycache__"
    if damage == "sealed":
        cache.write_text("not a folder", encoding="utf-8")
    else:
        assert kept() == "FunctionCache"
        for file in cache.glob(f"*.{damage}"):
            file.write_bytes(b"")
    assert kept() == "NullCache"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_one_flipped_bit_changes_both_sums(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    shape = data.draw(st.sampled_from([(6,), (3, 4), (2, 3, 2)]))
    bits = torch.randint(-(2**15), 2**15, shape).to(torch.int32 if dtype == torch.float32 else torch.int16)
    before = sums(bits, Region.whole(shape)).tolist()
    at, bit = data.draw(st.integers(0, bits.numel() - 1)), data.draw(st.integers(0, 8 * bits.element_size() - 1))
    width = 8 * bits.element_size()
    flipped = (int(bits.view(-1)[at]) & ((1 << width) - 1)) ^ (1 << bit)
    bits.view(-1)[at] = flipped - (1 << width) if flipped >> (width - 1) else flipped
    after = sums(bits, Region.whole(shape)).tolist()
    assert before[0] != after[0] and before[1] != after[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changes_that_cancel_in_the_sums_of_rows_and_columns_are_seen(dtype: torch.dtype) -> None:
    """Sums of 64-bit words modulo 2^64 would not see any of these: signs are the highest bits of some words."""
    torch.manual_seed(0)
    tensor = torch.randn(16, 16, 2, 2).to(dtype)
    flat = tensor.view(16, 64)
    others = [tensor.clone().view(16, 64) for _ in range(4)]
    others[0][:, 1::2].neg_()
    others[1][:, 3::4].neg_()
    others[2][4:8:2, 3:8:4].neg_()  # the corners of a rectangle
    others[3][[0, 0, 2, 2], [0, 2, 0, 2]] += torch.tensor([1, -1, -1, 1], dtype=dtype)
    assert len({digest(other) for other in (flat, *others)}) == 5


def test_exchanged_moved_and_negated_elements_are_seen() -> None:
    tensor = torch.arange(12.0).reshape(3, 4) + 1
    others = [
        tensor.flip(0),
        tensor.flip(1),
        tensor.roll(1),
        tensor.reshape(4, 3),
        -tensor,
        tensor[[1, 0, 2]],
        0 * tensor,
    ]
    assert len({digest(t).checksum for t in (tensor, *others)}) == 1 + len(others)
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))


@pytest.mark.parametrize("shape", [(8,), (8, 6), (4, 6, 5)])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("parts", [1, 2])
def test_parts_add_up_to_the_whole(shape: tuple[int, ...], dim: int, parts: int) -> None:
    if dim == 1 and len(shape) == 1:
        pytest.skip("has one dimension")
    tensor = torch.randn(shape)
    shares = [as_numbers(sums(part.clone(), Region.of(part, shape))) for part in tensor.chunk(parts, dim)]
    assert digest_of_sums(shape, tensor.dtype, [sum(share) for share in zip(*shares, strict=True)]) == digest(tensor)


def test_single_rows_steps_and_scalars_are_parts_too() -> None:
    tensor = torch.randn(6, 4, 2)
    pieces = [tensor[0], tensor[1:2], tensor[2::2], tensor[3::2, :, 0], tensor[3::2, :3, 1], tensor[3::2, 3, 1]]
    shares = [as_numbers(sums(part.clone(), Region.of(part, tensor.shape))) for part in pieces]
    assert sum(math.prod(p.shape) for p in pieces) == tensor.numel()
    assert digest_of_sums(tensor.shape, tensor.dtype, [sum(share) for share in zip(*shares, strict=True)]) == digest(
        tensor
    )


def test_a_part_across_rows_is_refused() -> None:
    tensor = torch.randn(4, 6)
    with pytest.raises(WeightSyncError, match=r"a part of a tensor of \[4, 6\] that goes over the ends of its rows"):
        sums(tensor, Region.of(tensor.reshape(8, 3)[1:3], tensor.shape))


def test_a_region_shows_the_same_elements_of_any_copy() -> None:
    tensor = torch.randn(2, 5, 4)
    part = tensor[1, 1:4, ::2]
    region = Region.of(part, tensor.shape)
    assert torch.equal(region.view(tensor.clone()), part) and region.elements == part.numel()
    assert torch.equal(region.view(torch.cat([tensor.new_zeros(3, 5, 4), tensor])[3:]), part)


@pytest.mark.parametrize(
    "part", ["w", "w[2:7]", "w[1::3]", "w[4]", "w[4, 1:]", "w[:, 1]", "w[1::2, :, :2]", "w[6:, 1:]"]
)
def test_pieces_of_a_region_add_up_to_it(part: str) -> None:
    tensor = torch.arange(7 * 3 * 4.0).view(7, 3, 4)
    held = eval(part, {"w": tensor})
    region, copy = Region.of(held, tensor.shape), torch.zeros_like(held)
    total = torch.zeros(SUMS, dtype=torch.int64)
    for first, count in ((0, 2), (2, 3), (5, 2)):
        if (found := region.within(first, (count, 3, 4))) is not None:
            rows, of_piece = found
            own = copy[rows] if region.by_rows else copy
            source = of_piece.view(tensor[first : first + count].clone())
            copy_and_add_sums(total, source, own, region, rows.start, read_back=tensor.dtype)
    assert torch.equal(copy, held)
    assert torch.equal(total, sums(held, region))


@pytest.mark.parametrize("read_back", [None, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(7, 1030), (7, 5), (3, 2, 4), (9,), (1,), (0, 4)])
def test_copying_adds_what_was_copied(shape: tuple[int, ...], to: torch.dtype, read_back: torch.dtype | None) -> None:
    source, copy = torch.randn(shape).bfloat16(), torch.full(shape, math.nan, dtype=to)
    sums_2 = torch.tensor([3, -4])
    copy_and_add_sums(sums_2, source, copy, Region.whole(shape), read_back=read_back)
    assert torch.equal(copy, source.to(to))
    read = source if read_back is None else source.to(read_back)
    assert torch.equal(sums_2 - torch.tensor([3, -4]), sums(read, Region.whole(shape)))


@pytest.mark.parametrize("of_place", [False, True])
def test_the_copy_is_read_back_if_asked_for(of_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that spoils what it has copied shows which of the two it reads."""

    def spoiled(words: Any, source: Any, target: Any, word: int, row: int, a: Any, e: Any, b: Any, both: Any) -> None:
        cpu_sums.weighted_sums(words[:0], source, target, word, row, a, e, b, both)
        target[...] = source + 1
        cpu_sums.weighted_sums(words, words[:0], words[:0], word, row, a, e, b, both)

    monkeypatch.setattr(cpu_sums, "add_weighted_sums", spoiled)
    source = torch.arange(12, dtype=torch.int32).view(3, 4)
    copy, sums_2 = torch.zeros_like(source), torch.zeros(SUMS, dtype=torch.int64)
    read_back = source.dtype if of_place else None
    copy_and_add_sums(sums_2, source, copy, Region.whole((3, 4)), read_back=read_back)
    monkeypatch.undo()
    assert torch.equal(copy, source + 1)
    assert torch.equal(sums_2, sums(copy if of_place else source, Region.whole((3, 4))))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_memory_of_another_shape_is_not_written_to(rows: int) -> None:
    memory = torch.zeros(5, 600)
    with pytest.raises(ValueError, match="cannot be copied"):
        copy_and_add_sums(torch.zeros(2, dtype=torch.int64), torch.ones(3, 600), memory[:rows], Region.whole((4, 600)))
    assert not memory.any()
