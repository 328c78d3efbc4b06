from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ral_system.report.overlay import colours, normalised, overlay, overlay_frames


def grey(width: int = 84, height: int = 84) -> Image.Image:
    return Image.new("RGB", (width, height), (124, 116, 104))


def brightness(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), dtype=np.float64)


def test_the_cell_with_most_mass_is_brightest_and_each_cell_is_flat() -> None:
    mass = np.array([[0.0, 0.1, 0.0], [0.0, 0.0, 0.6], [0.2, 0.0, 0.1]])
    light = brightness(overlay(grey(), mass))
    inner = light.reshape(3, 28, 3, 28).transpose(0, 2, 1, 3)[:, :, 2:-2, 2:-2]
    assert inner.std(axis=(2, 3)).max() == 0
    means = inner.mean(axis=(2, 3))
    assert np.array_equal(np.argsort(means.ravel(), kind="stable"), np.argsort(mass.ravel(), kind="stable"))


def test_lines_separate_equal_cells() -> None:
    light = brightness(overlay(grey(), np.ones((3, 3))))
    assert np.all(light[28, :] != light[14, 14])
    assert np.all(light[:, 56] != light[14, 14])


@pytest.mark.parametrize(("size", "grid"), [((85, 63), (3, 4)), ((10, 10), (7, 3)), ((5, 5), (8, 8)), ((1, 1), (2, 2))])
def test_awkward_sizes_keep_the_pictures_size(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert overlay(grey(*size), np.ones(grid)).size == size


def test_scale_does_not_matter_and_bad_values_count_as_none() -> None:
    mass = np.array([[0.2, 0.4], [np.nan, -1.0]])
    assert np.allclose(normalised(mass), [[0.5, 1.0], [0.0, 0.0]])
    assert np.array_equal(np.asarray(overlay(grey(), mass)), np.asarray(overlay(grey(), mass * 1e-9)))


def test_no_mass_at_all_is_uniform() -> None:
    assert np.array_equal(normalised(np.zeros((2, 2))), np.zeros((2, 2)))


def test_equal_steps_of_mass_get_lighter() -> None:
    luminance = colours(np.linspace(0, 1, 33)) @ np.array([0.2126, 0.7152, 0.0722])
    assert np.all(np.diff(luminance) > 0)


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2), (0, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="mass must be"):
        overlay(grey(), np.ones(shape))


def test_any_picture_mode() -> None:
    assert overlay(Image.new("RGBA", (8, 8)), np.ones((2, 2))).mode == "RGB"


def test_frames_share_one_scale() -> None:
    mass = np.array([[[0.4, 0.0]], [[0.1, 0.0]]])
    first, second = overlay_frames([grey(28, 28), grey(28, 28)], mass)
    light, darker = brightness(first), brightness(second)
    assert light[14, 7] > darker[14, 7] > light[14, 21]  # 0.4 in the first frame, 0.1 in the second, none
    assert np.array_equal(np.asarray(second), np.asarray(overlay(grey(28, 28), mass[1], peak=0.4)))


def test_frames_without_their_part_of_the_map_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mass must be \[frames, h, w\] with a picture each, got \(2, 1, 2\) for 1"):
        overlay_frames([grey()], np.ones((2, 1, 2)))
