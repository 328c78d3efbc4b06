"""How much of a prompt's evidence each of its visual tokens shows, and where it says to look.

A token counts with the share of its area that lies on evidence; one that merges several frames of a video, with the
mean over these.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

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
    x = left + (right - left) * np.arange(view.columns + 1) / max(1, view.columns)  # a line end alone has none
    return x, top + (bottom - top) * np.arange(view.rows + 1) / view.rows


def with_line_ends(values: np.ndarray, view: View, fill: float = 0.0) -> np.ndarray:
    """Values of a view's places [rows, columns] as those of its tokens; `fill` for tokens that end a line."""
    return (np.pad(values, ((0, 0), (0, 1)), constant_values=fill) if view.line_end else values).ravel()


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


def target(
    evidence: tuple[Region, ...],
    media: tuple[Media, ...],
    layouts: tuple[Layout, ...],
    *,
    spread: float,
    smoothing: float,
) -> Tensor | None:
    """tau over a prompt's n visual tokens, in order: float32 [n], sums to 1; None if no token shows any evidence.

    tau = (1 - smoothing) · the mean of a Gaussian for each region + smoothing / n. A Gaussian is centred on its box,
    its standard deviations are `spread` times the box's width and height; it is taken at the centres of the medium's
    tokens and normalised over them. Tokens that merge frames count by the share of these in the region's time. A region
    in whose time no frame was sampled is left out.
    """
    gaussians = [density for region in evidence if (density := _gaussian(region, media, layouts, spread)) is not None]
    if not gaussians or not covered(evidence, media, layouts).any():
        return None
    mixture = np.mean(gaussians, axis=0)
    return torch.from_numpy((1 - smoothing) * mixture + smoothing / len(mixture)).float()


def elsewhere(evidence: Sequence[Region], media: Sequence[Media], name: str) -> tuple[Region, ...]:
    """Regions as large as the given ones at other places of the same media, a function of `name`.

    Each is moved by a whole number of its widths, heights and durations, or to an edge, and of 64 such places the first
    of those that share least with the evidence, and with regions already moved, is taken. What fills its medium at all
    times stays where it is.
    """
    rng = random.Random(name)
    found: list[Region] = []
    for region in evidence:
        places = [_moved(region, media[region.medium], rng) for _ in range(_PLACES)]
        taken = (*evidence, *found)
        found.append(min(places, key=lambda place: sum(_shared(place, other) for other in taken)))
    return tuple(found)


_PLACES = 64


def _gaussian(region: Region, media: Sequence[Media], layouts: Sequence[Layout], spread: float) -> np.ndarray | None:
    """One region's part of the mixture [n]; None if no frame is in its time."""
    logs = []
    for index, (medium, layout) in enumerate(zip(media, layouts, strict=True)):
        for view in layout.views:
            share = np.mean([region.holds(time) for time in times_of(view, medium)]) if index == region.medium else 0.0
            x, y = ((of[:-1] + of[1:]) / 2 for of in edges(view))
            from_x = (x - (region.left + region.right) / 2) / (spread * (region.right - region.left))
            from_y = (y - (region.top + region.bottom) / 2) / (spread * (region.bottom - region.top))
            with np.errstate(divide="ignore"):  # ln 0 = -inf: nothing there
                places = np.log(share) - (from_y[:, None] ** 2 + from_x**2) / 2
            logs.append(with_line_ends(places, view, fill=-np.inf))
    densities = np.concatenate(logs)
    if densities.max() == -np.inf:
        return None
    densities = np.exp(densities - densities.max())  # a box far smaller than a token is not 0 everywhere
    return densities / densities.sum()


def _moved(region: Region, medium: Media, rng: random.Random) -> Region:
    left = rng.choice(_starts(region.left, region.right))
    top = rng.choice(_starts(region.top, region.bottom))
    right, bottom = min(1.0, left + region.right - region.left), min(1.0, top + region.bottom - region.top)
    moved = replace(region, left=left, top=top, right=right, bottom=bottom)
    if medium.clip is None or region.start_s is None or region.end_s is None:
        return moved
    first, length = region.start_s, region.end_s - region.start_s
    steps = sorted({math.floor((time - first) / length) for time in medium.clip.times_s})
    starts = [start for step in steps if (start := first + step * length) >= 0]
    start = rng.choice(starts) if starts else first
    return replace(moved, start_s=start, end_s=start + length)


def _starts(low: float, high: float) -> list[float]:
    """List where a stretch of this length may begin within [0, 1]: whole lengths away, or at an edge."""
    size = high - low
    steps = range(-math.floor(low / size), math.floor((1 - high) / size) + 1)
    return sorted({round(start, 9) for start in (0.0, *(low + step * size for step in steps), 1 - size)})


def _shared(one: Region, other: Region) -> float:
    """Area that two regions share, if they are of one medium and time."""
    starts, ends = (one.start_s or 0.0, other.start_s or 0.0), (one.end_s or math.inf, other.end_s or math.inf)
    if one.medium != other.medium or max(starts) >= min(ends):
        return 0.0
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    return max(0.0, width) * max(0.0, height)
