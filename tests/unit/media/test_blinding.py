"""Blinded media: the share that is black, where it is, and that it repeats."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ral_system.media.blinding import BlindedMedia, MaskedMedia, painted
from ral_system.media.store import MediaStore
from ral_system.types import Layout, Media, VideoSampling, View

WHITE = np.full((4, 56, 84, 3), 255, np.uint8)


def medium(**changes: object) -> BlindedMedia:
    found = BlindedMedia("0", 84, 56, masked=0.6, grid=(4, 6), frames_per_view=2, seed="0/1/train/17")
    return replace(found, **changes)  # type: ignore[arg-type]


def blocks(frame: np.ndarray, rows: int = 4, columns: int = 6) -> np.ndarray:
    """bool [rows, columns]: which blocks are black; every block is black or as it was."""
    height, width = frame.shape[0] // rows, frame.shape[1] // columns
    found = frame.reshape(rows, height, columns, width, 3).transpose(0, 2, 1, 3, 4).reshape(rows, columns, -1)
    assert np.array_equal(found.min(-1), found.max(-1))
    return found.max(-1) == 0


@pytest.mark.parametrize(("masked", "black"), [(0.6, 14), (0.5, 12), (0.01, 1), (1.0, 24)])
def test_the_asked_share_of_patches_is_black(masked: float, black: int) -> None:
    assert blocks(painted(WHITE[:1], medium(masked=masked))[0]).sum() == black
    assert WHITE.min() == 255


def test_a_mask_repeats_and_another_seed_makes_another() -> None:
    once, again, other = (painted(WHITE[:1], medium(seed=seed)) for seed in ("a", "a", "b"))
    assert np.array_equal(once, again) and not np.array_equal(once, other)
    assert medium(seed="a") != medium(seed="b") != medium().whole


def test_every_view_of_a_video_has_its_own_mask() -> None:
    masks = [blocks(frame) for frame in painted(WHITE, medium())]
    assert np.array_equal(masks[0], masks[1]) and np.array_equal(masks[2], masks[3])
    assert not np.array_equal(masks[1], masks[2])
    apart = [blocks(frame) for frame in painted(WHITE, medium(frames_per_view=1))]
    assert not any(np.array_equal(apart[i], apart[i + 1]) for i in range(3))
    assert len(painted(WHITE[:3], medium())) == 3  # half a view is left at the end


def test_blocks_are_patches_of_the_resized_picture() -> None:
    """A picture of 50 × 31 pixels that the processor brings to 84 × 56: edges blur by less than a pixel of it."""
    found = painted(np.full((1, 31, 50, 3), 255, np.uint8), medium())[0]
    resized = np.asarray(Image.fromarray(found).resize((84, 56), Image.Resampling.NEAREST))
    inside = resized.reshape(4, 14, 6, 14, 3)[:, 2:-2, :, 2:-2].reshape(40, 60, 3)
    assert blocks(inside).sum() == 14


def test_given_blocks_are_black_in_each_view() -> None:
    """Three frames are two views of two; the second is cut short."""
    black = np.zeros((2, 4, 6), bool)
    black[0, 1, 2] = black[0, 3, 5] = black[1, 0, 0] = True
    whole = Media("0", 84, 56)
    masked = MaskedMedia.of(whole, black, frames_per_view=2)
    found = painted(WHITE[:3], masked)
    assert [blocks(frame).tolist() for frame in found] == [black[0].tolist(), black[0].tolist(), black[1].tolist()]
    other = MaskedMedia.of(whole, ~black, frames_per_view=2)
    assert np.array_equal(np.maximum(found, painted(WHITE[:3], other)), WHITE[:3])
    assert masked != other and masked.whole == whole != masked


def test_the_grid_is_of_patches_and_that_of_the_finest_tiles() -> None:
    of: dict[str, Any] = {"patches_per_token": 4, "frames_per_view": 1, "masked": 0.5, "seed": ""}
    whole = Media("0", 84, 56)
    assert BlindedMedia.of(whole, Layout("image", (View(2, 3),)), **of).grid == (4, 6)
    tiles = (View(2, 2), View(2, 2, box=(0.0, 0.0, 0.5, 1.0)), View(2, 2, box=(0.5, 0.0, 1.0, 1.0)))
    assert BlindedMedia.of(whole, Layout("image", tiles, separated=True), **of).grid == (4, 8)


def test_a_store_hands_out_blinded_and_whole_media_apart(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    picture = store.put(Image.fromarray(WHITE[0]))
    of: dict[str, Any] = {"patches_per_token": 4, "frames_per_view": 2, "masked": 0.6, "seed": "a"}
    blind = BlindedMedia.of(picture, Layout("image", (View(2, 3),)), **of)
    assert blocks(np.asarray(store.open(blind))).sum() == 14
    assert np.asarray(store.open(picture)).min() == 255
    video = store.put_frames(WHITE, 1, VideoSampling(1.0, 8, 2))
    blind = BlindedMedia.of(video, Layout("video", (View(2, 3), View(2, 3, 1))), **of)
    assert blind.clip == video.clip
    assert [int(blocks(frame).sum()) for frame in store.frames(blind)] == [14] * 4
