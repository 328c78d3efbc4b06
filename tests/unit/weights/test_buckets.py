"""How tensors are dealt to buckets, and when the memory of one may be used again."""

import hypothesis.strategies as st
import torch
from hypothesis import given

from ral_system.weights.transfer.buckets import buckets, memory_of
from ral_system.weights.transfer.transfer import pieces
from tests.offered import manifest_of


def test_buckets_are_full_aligned_and_in_order() -> None:
    state = {
        name: torch.zeros(size, dtype=torch.bfloat16) for name, size in zip("abcde", (3, 9, 100, 1, 1), strict=True)
    }
    found = buckets(manifest_of(1, state), list(state), at_most=64)
    assert [[slot.name for slot in bucket.slots] for bucket in found] == [["a", "b"], ["c"], ["d", "e"]]
    assert [slot.start for slot in found[0].slots] == [0, 16] and [b.size for b in found] == [34, 200, 18]
    assert [b.index for b in found] == [0, 1, 2]
    buffer = torch.arange(34, dtype=torch.uint8)
    assert [(name, tensor.view(torch.uint8).tolist(), first) for name, tensor, first in found[0].pieces(buffer)] == [
        ("a", list(range(6)), 0),
        ("b", list(range(16, 34)), 0),
    ]


def test_an_empty_tensor_travels_too() -> None:
    state = {"a": torch.zeros(0), "b": torch.zeros(0, 5), "c": torch.ones(3)}
    for names in (["a", "b", "c"], ["c", "b", "a"], ["b"]):
        found = buckets(manifest_of(1, state), names, at_most=40)
        assert [slot.name for bucket in found for slot in bucket.slots] == names


def test_tensors_are_divided_between_rows() -> None:
    state = {"a": torch.arange(28).view(7, 2, 2), "b": torch.zeros(1, 9), "c": torch.zeros(())}
    found = buckets(manifest_of(1, state), list(state), at_most=100)  # three rows of 32 bytes
    assert [[(slot.name, slot.first, slot.shape) for slot in bucket.slots] for bucket in found] == [
        [("a", 0, (3, 2, 2))],
        [("a", 3, (3, 2, 2))],
        [("a", 6, (1, 2, 2)), ("b", 0, (1, 9)), ("c", 0, ())],
    ]
    come = [piece for name, tensor in state.items() for piece in pieces(name, tensor, 100)]
    for slot, piece in zip((slot for bucket in found for slot in bucket.slots), come, strict=True):
        assert (slot.name, slot.first, slot.shape) == (piece.name, piece.first, piece.tensor.shape)
    assert torch.equal(torch.cat([piece.tensor for piece in come[:3]]), state["a"])


@given(st.lists(st.integers(1, 250), min_size=1, max_size=20))
def test_a_bucket_waits_for_all_that_were_in_its_place(sizes: list[int]) -> None:
    state = {f"w{i}": torch.zeros(size, dtype=torch.uint8) for i, size in enumerate(sizes)}
    found = buckets(manifest_of(1, state), list(state), at_most=40)
    assert max(b.end for b in found) <= memory_of([(w.shape, w.dtype) for w in state.values()], at_most=40)
    for bucket in found:
        overlapping = [b.index for b in found[: bucket.index] if b.start < bucket.end and bucket.start < b.end]
        assert bucket.after == max(overlapping, default=-1) and bucket.start % 16 == 0


def test_small_buckets_are_filled_while_others_are_read() -> None:
    state = {f"w{i}": torch.zeros(40, dtype=torch.uint8) for i in range(9)}
    found = buckets(manifest_of(1, state), list(state), at_most=40)
    assert [b.start for b in found] == [0, 48, 96, 0, 48, 96, 0, 48, 96]
    assert [b.after for b in found] == [-1, -1, -1, 0, 1, 2, 3, 4, 5]
