import pytest
import torch

from ral_system.attention.provenance import KeyKind, concatenate, key_provenance, places
from ral_system.types import Layout, View

SYSTEM, TEXT, IMAGE, VIDEO, GENERATED = KeyKind


def test_by_hand() -> None:
    # system, two images of 1 × 2 and 2 × 1 cells with text between, a video of two frames of 1 × 2 with a time stamp
    # between its frames, text, a generated token that happens to be a visual one
    visual = torch.tensor([0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 1]).bool()
    layouts = [
        Layout("image", (View(1, 2),)),
        Layout("image", (View(2, 1),)),
        Layout("video", (View(1, 2, frame=0), View(1, 2, frame=1, seconds=2.0)), separated=True),
    ]
    found = key_provenance(visual, layouts, system_tokens=1, prompt_tokens=12)
    kinds = [SYSTEM, IMAGE, IMAGE, TEXT, IMAGE, IMAGE, VIDEO, VIDEO, TEXT, VIDEO, VIDEO, TEXT, GENERATED]
    assert found.kind.tolist() == kinds
    assert found.media.tolist() == [-1, 0, 0, -1, 1, 1, 0, 0, -1, 0, 0, -1, -1]
    assert found.frame.tolist() == [-1, 0, 0, -1, 0, 0, 0, 0, -1, 1, 1, -1, -1]
    assert found.row.tolist() == [-1, 0, 0, -1, 0, 1, 0, 0, -1, 0, 0, -1, -1]
    assert found.column.tolist() == [-1, 0, 1, -1, 0, 0, 0, 1, -1, 0, 1, -1, -1]


def test_media_of_both_kinds_are_numbered_each_by_its_own() -> None:
    """A video, a picture, a video and a picture, one token each, without text between them."""
    kinds = [VIDEO, IMAGE, VIDEO, IMAGE]
    layouts = [Layout("video" if kind == VIDEO else "image", (View(1, 1),)) for kind in kinds]
    found = key_provenance(torch.ones(4).bool(), layouts, system_tokens=0, prompt_tokens=4)
    assert found.kind.tolist() == kinds
    assert found.media.tolist() == [0, 0, 1, 1]


def test_line_ends_have_no_place_in_their_picture() -> None:
    """Two tiles of 2 × 2 and 1 × 3 cells with a line end after each row, then a smaller view of all without one."""
    tiles = View(2, 2, box=(0, 0, 0.5, 1), line_end=True), View(1, 3, box=(0.5, 0, 1, 1), line_end=True)
    layout = Layout("image", (*tiles, View(1, 2)))
    assert (layout.tokens, layout.runs) == (6 + 4 + 2, (12,))
    frame, row, column = places(layout).tolist()
    assert frame == [0] * 12
    assert row == [0, 0, -1, 1, 1, -1, 0, 0, 0, -1, 0, 0]
    assert column == [0, 1, -1, 0, 1, -1, 0, 1, 2, -1, 0, 1]
    found = key_provenance(torch.tensor([0, *[1] * 12]).bool(), [layout], system_tokens=0, prompt_tokens=13)
    assert found.kind.tolist() == [TEXT, *[IMAGE] * 12]  # a line end is also a token of its picture
    assert found.media.tolist() == [-1, *[0] * 12]
    assert found.row.tolist() == [-1, *row] and found.column.tolist() == [-1, *column]


def test_packing_and_splitting_are_inverse() -> None:
    parts = [
        key_provenance(
            torch.tensor([0, 1, 1, 0]).bool(), [Layout("image", (View(1, 2),))], system_tokens=1, prompt_tokens=3
        ),
        key_provenance(torch.tensor([0, 0]).bool(), [], system_tokens=0, prompt_tokens=1),
    ]
    packed = concatenate(parts)
    assert len(packed.kind) == 6
    for part, again in zip(parts, packed.split((4, 2)), strict=True):
        for name in ("kind", "media", "frame", "row", "column"):
            assert torch.equal(getattr(part, name), getattr(again, name))


def test_layouts_that_do_not_fit_are_refused() -> None:
    image = Layout("image", (View(2, 2),))
    with pytest.raises(ValueError, match="the prompt has 2 visual tokens, but its media make 4"):
        key_provenance(torch.tensor([1, 1, 0]).bool(), [image], system_tokens=0, prompt_tokens=3)
    with pytest.raises(ValueError, match="the prompt has 1 visual tokens, but its media make 0"):
        key_provenance(torch.tensor([1, 0]).bool(), [], system_tokens=0, prompt_tokens=2)
