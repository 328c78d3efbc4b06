"""How much of the evidence a visual token shows, by hand and against a fine raster."""

import numpy as np
import pytest

from ral_system.attention.evidence import covered
from ral_system.types import Clip, Layout, Media, Region, VideoSampling, View

PICTURE = Media("a", 84, 56)
GRID = Layout("image", (View(2, 3),))


def shares(*regions: Region, layout: Layout = GRID, medium: Media = PICTURE) -> list[float]:
    return covered(regions, (medium,), (layout,)).tolist()


def test_a_cell_is_covered_and_no_other() -> None:
    """Whatever the rounding of its edges."""
    for columns in (2, 3, 5, 7, 8):
        layout = Layout("image", (View(1, columns),))
        for at in range(columns):
            cell = Region(at / columns, 0, (at + 1) / columns, 1)
            assert shares(cell, layout=layout) == [float(i == at) for i in range(columns)]


def test_a_part_of_a_token_counts_by_its_area_and_a_place_once() -> None:
    half = Region(0, 0, 0.5, 0.25)
    assert shares(half) == pytest.approx([0.5, 0.25, 0, 0, 0, 0])
    assert shares(half, half, Region(0, 0, 1 / 3, 0.5)) == pytest.approx([1, 0.25, 0, 0, 0, 0])


def test_any_boxes_against_a_raster() -> None:
    rng = np.random.default_rng(0)
    views = (View(3, 4, box=(0.0, 0.0, 0.5, 1.0), line_end=True), View(2, 5, box=(0.25, 0.125, 1.0, 0.875)))
    places = (np.arange(1600) + 0.5) / 1600
    for _ in range(10):
        boxes = np.sort(rng.random((3, 2, 2)), axis=1).reshape(3, 4).tolist()
        seen = np.zeros((1600, 1600), dtype=bool)
        for left, top, right, bottom in boxes:
            seen |= ((places > top) & (places < bottom))[:, None] & ((places > left) & (places < right))
        expected = []
        for view in views:
            left, top, right, bottom = (round(1600 * edge) for edge in view.box)
            rows = np.array_split(seen[top:bottom, left:right], view.rows)
            for row in rows:
                expected += [part.mean() for part in np.array_split(row, view.columns, axis=1)]
                expected += [0.0] * view.line_end
        found = shares(*(Region(*box) for box in boxes), layout=Layout("image", views))
        assert found == pytest.approx(expected, abs=0.01)


def test_a_video_is_covered_in_its_time() -> None:
    """Four views of two frames each, half a second apart: the second and its middle are in the third and the fourth."""
    times = tuple(i / 2 for i in range(8))
    video = Media("b", 56, 28, Clip(VideoSampling(2, 8, 2), times, 4.0))
    layout = Layout("video", tuple(View(1, 2, frame=i, seconds=float(i)) for i in range(4)))
    place = Region(0.5, 0, 1, 1, start_s=2.0, end_s=3.5)
    assert shares(place, layout=layout, medium=video) == [0, 0, 0, 0, 0, 1, 0, 0.5]
    assert shares(Region(0, 0, 1, 1, start_s=3.6), layout=layout, medium=video) == [0] * 8
    assert shares(Region(0.5, 0, 1, 1), layout=layout, medium=video) == [0, 1] * 4


def test_each_medium_has_its_own() -> None:
    layouts = (Layout("image", (View(1, 2),)), GRID)
    found = covered((Region(0, 0, 1 / 3, 0.5, medium=1),), (PICTURE, PICTURE), layouts)
    assert found.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert covered((), (), ()).tolist() == []
