"""How much of the evidence a visual token shows, by hand and against a fine raster, and where it says to look."""

import math

import numpy as np
import pytest

from ral_system.attention.evidence import covered, elsewhere, target
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


def tau(*regions: Region, layout: Layout = GRID, medium: Media = PICTURE, smoothing: float = 0.1) -> list[float] | None:
    found = target(regions, (medium,), (layout,), spread=0.25, smoothing=smoothing)
    return None if found is None else found.tolist()


def test_a_target_by_hand() -> None:
    """A box over the first two of four tokens in a line: centre between them, a deviation of half a token."""
    line = Layout("image", (View(1, 4),))
    near, far, farther = (math.exp(-((d / 0.5) ** 2) / 2) for d in (0.5, 1.5, 2.5))
    total = 2 * near + far + farther
    expected = [0.9 * part / total + 0.025 for part in (near, near, far, farther)]
    assert tau(Region(0, 0, 0.5, 1), layout=line) == pytest.approx(expected, rel=1e-5)
    turned = Layout("image", (View(4, 1),))
    assert tau(Region(0, 0, 1, 0.5), layout=turned) == pytest.approx(expected, rel=1e-5)


def test_boxes_have_equal_weights_whatever_their_size() -> None:
    line = Layout("image", (View(1, 4),))
    small, large = Region(0, 0, 0.25, 1), Region(0.5, 0, 1, 1)
    one, other, both = (tau(*boxes, layout=line) for boxes in ((small,), (large,), (small, large)))
    assert one and other and both
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(one, other, strict=True)], rel=1e-5)


@pytest.mark.parametrize("side", [1.0, 0.1, 1e-3])
def test_a_target_is_a_distribution_that_is_never_0(side: float) -> None:
    """A box much smaller than a token is on that token."""
    found = tau(Region(0, 0, side, side))
    assert found is not None and sum(found) == pytest.approx(1) and min(found) >= 0.1 / 6 - 1e-6
    if side < 1:
        assert found[0] == max(found) == pytest.approx(0.9 + 0.1 / 6, abs=1e-3)


def test_a_large_box_has_the_published_peak() -> None:
    """About 5.7 times that of an even spread, for a box of 40.7 % of the area."""
    layout = Layout("image", (View(32, 32),))
    side = 0.407**0.5
    found = tau(Region(0.18, 0.18, 0.18 + side, 0.18 + side), layout=layout)
    assert found is not None and max(found) * 32 * 32 == pytest.approx(5.7, abs=0.1)


def test_a_target_in_a_video_is_in_its_frames() -> None:
    times = tuple(i / 2 for i in range(8))
    video = Media("b", 56, 28, Clip(VideoSampling(2, 8, 2), times, 4.0))
    layout = Layout("video", tuple(View(1, 2, frame=i, seconds=float(i), line_end=True) for i in range(4)))
    found = tau(Region(0.5, 0, 1, 1, start_s=2.0, end_s=3.5), layout=layout, medium=video, smoothing=0.12)
    beside = math.exp(-8.0)  # two deviations of a quarter of a token away
    assert found is not None
    of_frames = [sum(found[3 * i : 3 * i + 3]) for i in range(4)]
    assert of_frames == pytest.approx([0.03, 0.03, 0.03 + 0.88 * 2 / 3, 0.03 + 0.88 / 3], rel=1e-5)
    assert found[6] / 0.88 == pytest.approx((0.01 / 0.88) + 2 / 3 * beside / (1 + beside), rel=1e-4)
    assert found[8] == pytest.approx(0.01)  # a line's end
    assert tau(Region(0, 0, 1, 1, start_s=3.6), layout=layout, medium=video) is None
    assert tau() is None


def test_other_places_are_as_large_and_as_well_placed() -> None:
    """On a grid of cells other cells, off the evidence while there is room, and the same for the same name."""
    layout = Layout("image", (View(3, 3),))
    cells = tuple(Region(i / 3, 1 / 3, (i + 1) / 3, 2 / 3) for i in range(3))
    places = set()
    for name in map(str, range(30)):
        moved = elsewhere(cells, (PICTURE,), name)
        assert moved == elsewhere(cells, (PICTURE,), name)
        shown = [shares(region, layout=layout) for region in moved]
        assert all(sorted(each) == [0] * 8 + [1] for each in shown)
        assert not any(any(each[3:6]) for each in shown)
        assert len({each.index(1) for each in shown}) == 3  # as many cells as there were
        places |= {each.index(1) for each in shown}
    assert places == {0, 1, 2, 6, 7, 8}
    large = Region(0.1, 0.2, 0.8, 0.9)
    (moved,) = elsewhere((large,), (PICTURE,), "a")
    assert (moved.right - moved.left, moved.bottom - moved.top) == pytest.approx((0.7, 0.7)) and moved != large
    assert elsewhere((Region(0, 0, 1, 1),), (PICTURE,), "a") == (Region(0, 0, 1, 1),)


def test_other_places_in_a_video_are_at_another_time_that_was_sampled() -> None:
    video = Media("b", 56, 28, Clip(VideoSampling(1, 4, 2), (0.0, 2.6, 5.3, 8.0), 8.0))
    second = Region(0, 0, 1, 1, start_s=5.0, end_s=6.0)
    starts = {elsewhere((second,), (video,), str(i))[0].start_s for i in range(30)}
    assert starts == {0.0, 2.0, 8.0}
