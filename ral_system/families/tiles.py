"""Pictures that a model sees in square tiles: how many, how large that makes them, and ranks that share them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ral_system.attention.sequence import SequenceGroup
from ral_system.config.data import FilesConfig
from ral_system.errors import ConfigError, DataError
from ral_system.families.qwen_vl.vision import DealtViews


@dataclass(frozen=True, slots=True)
class TileBudget:
    """Pictures become rows and columns of whole tiles, in the number that comes nearest to their shape."""

    tile_px: int
    min_tiles: int
    max_tiles: int
    processor: tuple[int, int]
    """Fewest and most tiles that the model's processor cuts a picture into."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height as the model sees them. Raises DataError where no size within the bounds would be left so by
        the model's processor.
        """
        columns, rows = tile_grid(width, height, self.tile_px, self.min_tiles, self.max_tiles)
        while (again := tile_grid(columns * self.tile_px, rows * self.tile_px, self.tile_px, *self.processor)) != (
            columns,
            rows,
        ):
            columns, rows = again  # the processor prefers more tiles of the same shape
        if not self.min_tiles <= columns * rows <= self.max_tiles:
            raise DataError(
                f"{width}x{height} px: the model's processor makes {columns * rows} tiles of it, where "
                f"{self.min_tiles} to {self.max_tiles} are allowed"
            )
        return columns * self.tile_px, rows * self.tile_px


@dataclass(frozen=True, slots=True)
class FrameBudget:
    """Frames of a video, each one tile."""

    tile_px: int
    bounds: tuple[int, int]
    """`data.video.min_pixels` and `max_pixels`, which must allow a tile."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The tile's, whatever the frame's. Raises ConfigError where the bounds do not allow it."""
        low, high = self.bounds
        if not low <= self.tile_px**2 <= high:
            name, value = ("min_pixels", low) if self.tile_px**2 < low else ("max_pixels", high)
            raise ConfigError(
                f"data.video.{name}={value}: the model sees every frame in {self.tile_px}x{self.tile_px} px; set it to "
                f"{self.tile_px**2}"
            )
        return self.tile_px, self.tile_px


def tile_grid(width: int, height: int, tile_px: int, min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """Columns and rows of a picture's tiles, as InternVL's processors have them (arXiv 2404.16821, section 3.2)."""
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    columns, rows = get_optimal_tiled_canvas((height, width), (tile_px, tile_px), min_tiles, max_tiles)
    return columns, rows


@dataclass(frozen=True, slots=True)
class ResolutionBudget:
    """Pictures become as large as fits the best of some resolutions, in their own shape."""

    allowed: tuple[tuple[int, int], ...]
    """Heights and widths."""
    processor: tuple[tuple[int, int], ...]
    """All resolutions of the model's processor."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height as the model sees them. Raises DataError where the model's processor would choose another
        resolution for a picture of that size.
        """
        from transformers.image_processing_utils import select_best_resolution

        tall, wide = select_best_resolution((height, width), list(self.allowed))
        scale = min(wide / width, tall / height)
        found = min(math.ceil(width * scale), wide), min(math.ceil(height * scale), tall)
        if select_best_resolution(found[::-1], list(self.processor)) != (tall, wide):
            raise DataError(f"too long and thin: {width}x{height} px")
        return found


def resolution_budget(data: FilesConfig, processor: tuple[tuple[int, int], ...]) -> ResolutionBudget:
    """The processor's resolutions, heights and widths, within the configured bounds of pictures.

    Raises ConfigError for bounds that hold none.
    """
    least, most = data.image.min_pixels or 0, data.image.max_pixels or math.inf
    allowed = tuple(size for size in processor if least <= size[0] * size[1] <= most)
    if not allowed:
        areas = [height * width for height, width in processor]
        raise ConfigError(
            f"data.image.min_pixels={data.image.min_pixels} and data.image.max_pixels={data.image.max_pixels} allow no "
            f"resolution of the model's processor, which has {min(areas)} to {max(areas)} pixels; move them apart"
        )
    return ResolutionBudget(allowed, processor)


def tile_budget(data: FilesConfig, tile_px: int, processor: tuple[int, int]) -> TileBudget:
    """The configured bounds of pictures in whole tiles, each the image processor's own where it is null.

    Raises ConfigError for bounds that the processor does not have, or that no number of tiles is between.
    """
    config, area = data.image, tile_px**2
    low, high = (tiles * area for tiles in processor)
    for name, value in (("min_pixels", config.min_pixels), ("max_pixels", config.max_pixels)):
        if value is not None and not low <= value <= high:
            raise ConfigError(
                f"data.image.{name}={value} is outside what the model's processor allows, {low} to {high} pixels; set "
                "it inside, to null, or change preprocessor_config.json of the model"
            )
    least = processor[0] if config.min_pixels is None else -(-config.min_pixels // area)
    most = processor[1] if config.max_pixels is None else config.max_pixels // area
    if least > most:
        raise ConfigError(
            f"data.image.min_pixels={config.min_pixels} and data.image.max_pixels={config.max_pixels}: no whole number "
            f"of tiles of {area} pixels lies between; move them apart"
        )
    return TileBudget(tile_px, least, most, processor)


def seen_tiles(
    see: Callable[[Tensor], Tensor], tiles: Tensor, counts: Tensor, sequence: SequenceGroup | None
) -> Sequence[Tensor]:
    """Encode the tiles of each medium: [n, patches, E].

    `tiles` [N, 3, H, W] are those of all media in order, `counts` [media, 1] of each. `see` turns tiles into [N,
    patches, E]; the ranks of `sequence` do so for a part of them each.
    """
    ones = torch.ones_like(counts)
    views = DealtViews(torch.cat([counts, ones, ones], dim=1), 1, sequence)
    own = see(views.own(tiles))
    flat = own.flatten(1)
    of_media = views.of_media(flat.split(counts[:, 0].tolist()) if sequence is None else (flat,))
    return [medium.unflatten(1, own.shape[1:]) for medium in of_media]
