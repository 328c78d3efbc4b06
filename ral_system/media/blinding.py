"""Media with some of the encoder's patches black."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import isqrt

import numpy as np

from ral_system.types import Layout, Media


@dataclass(frozen=True, slots=True, kw_only=True)
class PaintedMedia(Media, ABC):
    """A medium as a store hands it over with black blocks. It never equals the whole medium, or one with others."""

    grid: tuple[int, int]
    """Rows and columns of the blocks over the whole picture or frame."""
    frames_per_view: int
    """Neighbouring frames that one patch covers, and that have one mask."""

    @property
    def whole(self) -> Media:
        """The medium without black blocks."""
        return Media(self.digest, self.width_px, self.height_px, self.clip)

    @abstractmethod
    def masks(self, views: int) -> np.ndarray:
        """Return which blocks are black: bool [views, rows, columns]; a picture has one view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlindedMedia(PaintedMedia):
    """A medium with a share of the encoder's patches black, chosen by a seed; at least one patch is.

    Example: `BlindedMedia("9f86d0…", 84, 84, masked=0.6, grid=(6, 6), frames_per_view=2, seed="0/12/train/17/0")`
    """

    masked: float
    """Share of the blocks of every view that is black, rounded to whole blocks."""
    seed: str
    """What the masks depend on."""

    @classmethod
    def of(
        cls, whole: Media, layout: Layout, *, patches_per_token: int, frames_per_view: int, masked: float, seed: str
    ) -> BlindedMedia:
        """Blind a medium whose visual tokens are `layout`, each of them a square of so many patches."""
        side = isqrt(patches_per_token)
        rows, columns = layout.finest_grid
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

    def masks(self, views: int) -> np.ndarray:
        """A mask of its own for every view."""
        random = np.random.default_rng(list(hashlib.sha256(self.seed.encode()).digest()))
        blocks = self.grid[0] * self.grid[1]
        found, black = np.zeros((views, blocks), bool), max(1, round(self.masked * blocks))
        for view in found:
            view[random.permutation(blocks)[:black]] = True
        return found.reshape(views, *self.grid)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedMedia(PaintedMedia):
    """A medium with given blocks black.

    Example, a picture of 1 × 2 blocks, the second one black: `MaskedMedia("9f86d0…", 56, 28, grid=(1, 2),
    frames_per_view=2, black=bytes([0b01000000]))`
    """

    black: bytes
    """The masks of all views, row by row, as bits (`numpy.packbits`)."""

    @classmethod
    def of(cls, whole: Media, black: np.ndarray, *, frames_per_view: int) -> MaskedMedia:
        """Mask a medium by bool [views, rows, columns]."""
        return cls(
            whole.digest,
            whole.width_px,
            whole.height_px,
            whole.clip,
            grid=black.shape[1:],
            frames_per_view=frames_per_view,
            black=np.packbits(black).tobytes(),
        )

    def masks(self, views: int) -> np.ndarray:
        """The given ones."""
        shape = (views, *self.grid)
        bits = np.unpackbits(np.frombuffer(self.black, np.uint8), count=int(np.prod(shape)))
        return bits.astype(bool).reshape(shape)


def painted(frames: np.ndarray, media: PaintedMedia) -> np.ndarray:
    """Copy uint8 [frames, height, width, 3] with black blocks.

    A pixel belongs to the block that its centre falls into when the picture is resized for the encoder, so blocks are
    whole patches whatever that size is.
    """
    (rows, columns), (height, width) = media.grid, frames.shape[1:3]
    row_of, column_of = _blocks(height, rows), _blocks(width, columns)
    found, step = frames.copy(), media.frames_per_view
    for view, mask in enumerate(media.masks(-(-len(frames) // step))):
        found[view * step : (view + 1) * step, mask[row_of[:, None], column_of]] = 0
    return found


def _blocks(pixels: int, blocks: int) -> np.ndarray:
    """Along one side, the block of every pixel."""
    return (2 * np.arange(pixels) + 1) * blocks // (2 * pixels)
