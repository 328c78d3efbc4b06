"""Media with a share of the encoder's patches black, chosen by a seed; at least one patch is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import isqrt

import numpy as np

from ral_system.types import Layout, Media


@dataclass(frozen=True, slots=True, kw_only=True)
class BlindedMedia(Media):
    """A medium as a store hands it over with black blocks. It never equals the whole medium, or one of another seed.

    Example: `BlindedMedia("9f86d0…", 84, 84, masked=0.6, grid=(6, 6), frames_per_view=2, seed="0/12/train/17/0")`
    """

    masked: float
    """Share of the blocks of every view that is black, rounded to whole blocks."""
    grid: tuple[int, int]
    """Rows and columns of the vision encoder's patches over the whole picture or frame."""
    frames_per_view: int
    """Neighbouring frames that one patch covers, and that have one mask."""
    seed: str
    """What the masks depend on."""

    @classmethod
    def of(
        cls, whole: Media, layout: Layout, *, patches_per_token: int, frames_per_view: int, masked: float, seed: str
    ) -> BlindedMedia:
        """Blind a medium whose visual tokens are `layout`, each of them a square of so many patches."""
        side = isqrt(patches_per_token)
        # Tiles cover parts of the picture: the finest of them decide.
        rows = max(round(view.rows / (view.box[3] - view.box[1])) for view in layout.views)
        columns = max(round(view.columns / (view.box[2] - view.box[0])) for view in layout.views)
        return cls(
            whole.digest,
            whole.width_px,
            whole.height_px,
            whole.clip,
            masked=masked,
            grid=(rows * side, columns * side),
            frames_per_view=frames_per_view,
            seed=seed,
        )

    @property
    def whole(self) -> Media:
        """The medium without black blocks."""
        return Media(self.digest, self.width_px, self.height_px, self.clip)


def blinded(frames: np.ndarray, media: BlindedMedia) -> np.ndarray:
    """Copy uint8 [frames, height, width, 3] with black blocks.

    A pixel belongs to the patch that its centre falls into when the picture is resized for the encoder, so blocks are
    whole patches whatever that size is.
    """
    rows, columns = media.grid
    height, width = frames.shape[1:3]
    random = np.random.default_rng(list(hashlib.sha256(media.seed.encode()).digest()))
    row_of, column_of = _patches(height, rows), _patches(width, columns)
    found, black = frames.copy(), max(1, round(media.masked * rows * columns))
    for first in range(0, len(frames), media.frames_per_view):
        mask = np.zeros(rows * columns, bool)
        mask[random.permutation(rows * columns)[:black]] = True
        found[first : first + media.frames_per_view, mask.reshape(rows, columns)[row_of[:, None], column_of]] = 0
    return found


def _patches(pixels: int, patches: int) -> np.ndarray:
    """Along one side, the patch of every pixel."""
    return (2 * np.arange(pixels) + 1) * patches // (2 * pixels)
