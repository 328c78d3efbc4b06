import pytest
import torch

from ral_system.attention.provenance import KeyKind, concatenate, key_provenance

PAD, SYSTEM, TEXT, IMAGE, VIDEO, GENERATED = KeyKind


def test_by_hand() -> None:
    # system, two images of 1 × 2 and 2 × 1 cells with text between, a video of two frames of 1 × 2 with a time stamp
    # between its frames, text, a generated token that happens to be of an image's type
    types = torch.tensor([0, 1, 1, 0, 1, 1, 2, 2, 0, 2, 2, 0, 1])
    found = key_provenance(types, images=[(1, 1, 2), (1, 2, 1)], videos=[(2, 1, 2)], system_tokens=1, prompt_tokens=12)
    kinds = [SYSTEM, IMAGE, IMAGE, TEXT, IMAGE, IMAGE, VIDEO, VIDEO, TEXT, VIDEO, VIDEO, TEXT, GENERATED]
    assert found.kind.tolist() == kinds
    assert found.media.tolist() == [-1, 0, 0, -1, 1, 1, 0, 0, -1, 0, 0, -1, -1]
    assert found.frame.tolist() == [-1, 0, 0, -1, 0, 0, 0, 0, -1, 1, 1, -1, -1]
    assert found.row.tolist() == [-1, 0, 0, -1, 0, 1, 0, 0, -1, 0, 0, -1, -1]
    assert found.column.tolist() == [-1, 0, 1, -1, 0, 0, 0, 1, -1, 0, 1, -1, -1]


def test_padding_is_padding_whatever_else_it_seems() -> None:
    types = torch.tensor([0, 0, 0, 1, 0])
    padding = torch.tensor([True, True, False, False, False])
    found = key_provenance(types, images=[(1, 1, 1)], system_tokens=3, prompt_tokens=4, padding=padding)
    assert found.kind.tolist() == [PAD, PAD, SYSTEM, IMAGE, GENERATED]


def test_packing_and_splitting_are_inverse() -> None:
    parts = [
        key_provenance(torch.tensor([0, 1, 1, 0]), images=[(1, 1, 2)], system_tokens=1, prompt_tokens=3),
        key_provenance(torch.tensor([0, 0]), system_tokens=0, prompt_tokens=1),
    ]
    packed = concatenate(parts)
    assert len(packed.kind) == 6
    for part, again in zip(parts, packed.split((4, 2)), strict=True):
        for name in ("kind", "media", "frame", "row", "column"):
            assert torch.equal(getattr(part, name), getattr(again, name))


def test_grids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"token_types has 2 image tokens, but the grids \[\(1, 2, 2\)\] make 4"):
        key_provenance(torch.tensor([1, 1, 0]), images=[(1, 2, 2)], system_tokens=0, prompt_tokens=3)
    with pytest.raises(ValueError, match=r"token_types has 1 video tokens, but the grids \[\] make 0"):
        key_provenance(torch.tensor([2, 0]), system_tokens=0, prompt_tokens=2)
