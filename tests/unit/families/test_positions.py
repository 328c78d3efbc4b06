"""Rotary positions, by hand and against slow code."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2_5_VLForConditionalGeneration

from ral_system.families.qwen_vl.positions import rope_positions
from ral_system.tasks.tiny_model import build_config, build_tokenizer
from ral_system.types import Layout, View

TEXT, IMAGE, VIDEO = 0, 1, 2


def picture(rows: int, columns: int) -> Layout:
    return Layout("image", (View(rows, columns),))


def video(frames: int, rows: int, columns: int, seconds: float) -> Layout:
    """Frames that are `seconds` apart."""
    return Layout("video", tuple(View(rows, columns, i, i * seconds) for i in range(frames)))


def test_by_hand() -> None:
    """Two words, a picture of 1 x 2, a word, a video of 2 frames of 1 x 2, 1.5 s apart at 2 positions a second."""
    visual = torch.tensor([0, 0, 1, 1, 0, 1, 1, 1, 1, 0]).bool()
    found = rope_positions(visual, [picture(1, 2), video(2, 1, 2, 1.5)], positions_per_second=2)
    assert found.tolist() == [
        [0, 1, 2, 2, 4, 5, 5, 8, 8, 9],
        [0, 1, 2, 2, 4, 5, 5, 5, 5, 9],
        [0, 1, 2, 3, 4, 5, 6, 5, 6, 9],
    ]


def test_views_that_stand_apart_are_as_pictures() -> None:
    """A word, two frames of 1 x 2 with a time between them that is not counted in, and a word."""
    visual = torch.tensor([0, 1, 1, 0, 1, 1, 0]).bool()
    apart = replace(video(2, 1, 2, 1.5), separated=True)
    for per_second in (None, 2.0):
        found = rope_positions(visual, [apart], positions_per_second=per_second)
        assert found.tolist() == [[0, 1, 1, 3, 4, 4, 6], [0, 1, 1, 3, 4, 4, 6], [0, 1, 2, 3, 4, 5, 6]]


def test_a_model_that_counts_no_seconds_counts_frames() -> None:
    visual = torch.tensor([0, 1, 1, 1, 0]).bool()
    found = rope_positions(visual, [video(3, 1, 1, 4.0)], positions_per_second=None)
    assert found.tolist() == [[0, 1, 2, 3, 4], [0, 1, 1, 1, 4], [0, 1, 1, 1, 4]]


def test_text_alone_counts_up() -> None:
    assert rope_positions(torch.zeros(4).bool(), [], positions_per_second=0).tolist() == [[0, 1, 2, 3]] * 3


GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
PARTS = st.lists(
    st.one_of(
        st.tuples(st.just(TEXT), st.integers(1, 4)),
        st.tuples(st.just(IMAGE), GRIDS),
        st.tuples(st.just(VIDEO), GRIDS, st.sampled_from([0.25, 1.0, 1.3671875, 4.0])),
    ),
    min_size=1,
    max_size=6,
)


@given(PARTS)
def test_against_one_token_at_a_time(parts: list) -> None:
    visual, layouts, expected, begin = [], [], [], 0
    for kind, what, *seconds in parts:
        if kind == TEXT:
            for _ in range(what):
                visual.append(False)
                expected.append((begin, begin, begin))
                begin += 1
            continue
        frames, rows, columns = what if kind == VIDEO else (1, *what[1:])
        layouts.append(video(frames, rows, columns, seconds[0]) if kind == VIDEO else picture(rows, columns))
        cells = []
        for frame in range(frames):
            for row in range(rows):
                for column in range(columns):
                    visual.append(True)
                    cells.append((begin + int(frame * (seconds or [0])[0] * 2), begin + row, begin + column))
        expected += cells
        begin = max(max(cell) for cell in cells) + 1
    found = rope_positions(torch.tensor(visual), layouts, positions_per_second=2)
    assert [tuple(p) for p in found.T.tolist()] == expected


@pytest.mark.parametrize("grids", [[(1, 2, 3)], [(1, 3, 1), (1, 1, 1), (1, 2, 2)]])
def test_pictures_are_where_transformers_puts_them(grids: list) -> None:
    tokenizer = build_tokenizer(["a"])
    model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer, hidden=64, layers=1, vision_layers=1))
    types = [TEXT] * 3
    for t, h, w in grids:
        types += [IMAGE] * (t * h * w) + [TEXT]
    ids = torch.zeros(1, len(types), dtype=torch.int64)
    patches = torch.tensor([(t, 2 * h, 2 * w) for t, h, w in grids])
    expected, _ = model.model.get_rope_index(ids, torch.tensor([types]), image_grid_thw=patches)
    layouts = [picture(rows, columns) for _, rows, columns in grids]
    found = rope_positions(torch.tensor(types) == IMAGE, layouts, positions_per_second=2)
    assert torch.equal(found, expected[:, 0])
