"""How much of a prompt's evidence each of its visual tokens shows.

A token counts with the share of its area that lies on evidence; one that merges several frames of a video, with the
mean over these.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from ral_system.types import Box, Layout, Media, Region, View


@functools.lru_cache(maxsize=256)
def covered(evidence: tuple[Region, ...], media: tuple[Media, ...], layouts: tuple[Layout, ...]) -> Tensor:
    """Share of each visual token of a prompt, in order, that lies on evidence: float32 [n], within [0, 1].

    A place on several of the rectangles counts once. The token that ends a line has no place, and 0. `layouts` are
    those of `media`, one each.
    """
    found = [np.zeros(0)]
    for index, (medium, layout) in enumerate(zip(media, layouts, strict=True)):
        regions = [region for region in evidence if region.medium == index]
        for view in layout.views:
            of_frames = [
                _covered(view, tuple(region.box for region in regions if region.holds(time)))
                for time in times_of(view, medium)
            ]
            found.append(np.mean(of_frames, axis=0))
    return torch.from_numpy(np.concatenate(found)).float()


def times_of(view: View, medium: Media) -> tuple[float | None, ...]:
    """Times in seconds of the frames that a view merges; of a picture, which has no time, (None,)."""
    if medium.clip is None:
        return (None,)
    step = medium.clip.sampling.step
    return medium.clip.times_s[view.frame * step : (view.frame + 1) * step]


def edges(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Edges of a view's columns [columns + 1] and rows [rows + 1], as fractions of the medium."""
    left, top, right, bottom = view.box
    x = left + (right - left) * np.arange(view.columns + 1) / view.columns
    return x, top + (bottom - top) * np.arange(view.rows + 1) / view.rows


def with_line_ends(values: np.ndarray, view: View) -> np.ndarray:
    """Values of a view's places [rows, columns] as those of its tokens; 0 for tokens that end a line."""
    return (np.pad(values, ((0, 0), (0, 1))) if view.line_end else values).ravel()


@functools.lru_cache(maxsize=1024)
def _covered(view: View, boxes: tuple[Box, ...]) -> np.ndarray:
    """`covered` of one view: it is cut along all edges, into pieces that lie on a box as a whole or not at all."""
    x, y = edges(view)
    x_cuts = np.unique([*x, *(np.clip(edge, x[0], x[-1]) for box in boxes for edge in box[::2])])
    y_cuts = np.unique([*y, *(np.clip(edge, y[0], y[-1]) for box in boxes for edge in box[1::2])])
    inside = np.zeros((len(y_cuts) - 1, len(x_cuts) - 1), dtype=bool)
    for left, top, right, bottom in boxes:
        rows = (y_cuts[:-1] >= top) & (y_cuts[1:] <= bottom)
        inside |= rows[:, None] & (x_cuts[:-1] >= left) & (x_cuts[1:] <= right)
    areas = np.zeros((view.rows, view.columns))
    row, column = (np.searchsorted(of, cuts[:-1], side="right") - 1 for of, cuts in ((y, y_cuts), (x, x_cuts)))
    np.add.at(areas, (row[:, None], column[None]), inside * np.diff(y_cuts)[:, None] * np.diff(x_cuts))
    shares = areas / (np.diff(y)[:, None] * np.diff(x))
    return with_line_ends(shares.round(6), view)  # a box that ends at a token's edge, up to rounding, ends there
