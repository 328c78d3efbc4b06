"""Attention mass per visual token, drawn over a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

# Plasma at nine even stops: perceptually uniform, so equal steps of mass look like equal steps of colour.
# It begins at blue and ends at a strong yellow, so both ends show on light and on dark pictures.
_COLOURMAP = np.array(
    [
        (13, 8, 135),
        (76, 2, 161),
        (126, 3, 168),
        (170, 35, 149),
        (204, 71, 120),
        (230, 108, 92),
        (248, 149, 64),
        (253, 197, 39),
        (240, 249, 33),
    ],
    dtype=np.float64,
)
_ALPHA = 0.55
_GRID_LINE = np.array((255, 255, 255), dtype=np.float64)
_GRID_ALPHA = 0.35


def overlay_frames(frames: Sequence[Image.Image], mass: np.ndarray, peak: float | None = None) -> list[Image.Image]:
    """Blend `mass` [frames, h, w] over the frames of a video, or over one picture.

    All share one scale, up to `peak` (default: the largest entry), so frames can be compared. Raises ValueError
    unless there is one picture per frame of the map.
    """
    if mass.ndim != 3 or len(frames) != len(mass) or not frames:
        raise ValueError(f"mass must be [frames, h, w] with a picture each, got {mass.shape} for {len(frames)}")
    peak = float(_clean(mass).max(initial=0.0)) if peak is None else peak
    return [overlay(frame, part, peak) for frame, part in zip(frames, mass, strict=True)]


def overlay(image: Image.Image, mass: np.ndarray, peak: float | None = None) -> Image.Image:
    """Blend `mass` [h, w] over `image`, relative to `peak` (default: its maximum): blue got none, yellow most.

    Each visual token is one flat cell with thin lines between cells. Negative and non-finite mass counts as none.
    Returns an RGB image of the same size.
    """
    if mass.ndim != 2 or 0 in mass.shape:
        raise ValueError(f"mass must be [h, w] with at least one cell, got shape {mass.shape}")
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    rows, columns = _cell_of(pixels.shape[0], mass.shape[0]), _cell_of(pixels.shape[1], mass.shape[1])
    heat = colours(normalised(mass, peak))[rows][:, columns]
    blended = (1 - _ALPHA) * pixels + _ALPHA * heat
    edge = np.zeros(pixels.shape[:2], dtype=bool)
    edge[1:] |= (np.diff(rows) != 0)[:, None]
    edge[:, 1:] |= (np.diff(columns) != 0)[None, :]
    blended[edge] = (1 - _GRID_ALPHA) * blended[edge] + _GRID_ALPHA * _GRID_LINE
    return Image.fromarray(np.rint(blended).astype(np.uint8))


def normalised(mass: np.ndarray, peak: float | None = None) -> np.ndarray:
    """Divide `mass` by `peak` (default: its maximum); in [0, 1], and all zero if there is no mass."""
    clean = _clean(mass)
    peak = clean.max(initial=0.0) if peak is None else peak
    return (clean / peak).clip(max=1.0) if peak > 0 else clean


def _clean(mass: np.ndarray) -> np.ndarray:
    return np.nan_to_num(mass.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0.0)


def colours(values: np.ndarray) -> np.ndarray:
    """Map values in [0, 1], of any shape […], to colours in [0, 255], float [..., 3]."""
    stops = np.linspace(0, 1, len(_COLOURMAP))
    return np.stack([np.interp(values, stops, _COLOURMAP[:, channel]) for channel in range(3)], axis=-1)


def _cell_of(pixels: int, cells: int) -> np.ndarray:
    """Map each pixel along one side to its cell."""
    return np.arange(pixels) * cells // pixels
