"""Rotary positions of the Qwen-VL family (M-RoPE): time, row and column of every token.

Our own, since transformers 5.3 to 5.19 begin the text after a video too early: behind its rows and columns, whatever
its length in time. Here as in Qwen2-VL's paper (arXiv 2409.12191), in vLLM and in earlier transformers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ral_system.attention.provenance import places
from ral_system.types import Clip, Layout


def rope_positions(visual: Tensor, layouts: Sequence[Layout], *, positions_per_second: float | None) -> Tensor:
    """int64 [3, T] of one sequence, from 0 on.

    Text counts up alike in all three. The visual token of frame i, row r and column c of a medium that begins at s is
    at s + (t, r, c); t is 0 in a picture, and in a video the view's seconds · `positions_per_second`, or i where that
    is None (Qwen2-VL). A view that stands apart from the others is as a picture. What follows begins one above all that
    came before. `visual` bool [T], on CPU, marks the visual tokens. Sequences alike share the tensor: do not modify it.
    """
    pieces = tuple(piece for layout in layouts for piece in _pieces(layout))
    return _of_runs(tuple(_runs(visual)), pieces, positions_per_second)


def _pieces(layout: Layout) -> tuple[Layout, ...]:
    """The parts of a medium that are one run of tokens each; time begins in each."""
    if not layout.separated:
        return (layout,)
    return tuple(Layout(layout.kind, (replace(view, frame=0, seconds=0.0),)) for view in layout.views)


@functools.lru_cache(maxsize=64)
def _of_runs(
    runs: tuple[tuple[bool, int], ...], layouts: tuple[Layout, ...], positions_per_second: float | None
) -> Tensor:
    parts: list[Tensor] = []
    begin, media = 0, iter(layouts)
    for is_visual, length in runs:
        if not is_visual:
            parts.append(torch.arange(length).expand(3, -1) + begin)
            begin += length
            continue
        while length > 0:  # media without text between them are one run
            layout = next(media)
            frame, row, column = places(layout)
            parts.append(torch.stack([_times(layout, positions_per_second)[frame], row, column]) + begin)
            begin = int(parts[-1].max()) + 1
            length -= layout.tokens
    return torch.cat(parts, dim=1)


def _times(layout: Layout, positions_per_second: float | None) -> Tensor:
    if positions_per_second is None:
        return torch.arange(len(layout.views))
    seconds = torch.tensor([view.seconds for view in layout.views], dtype=torch.float64)
    return (seconds * positions_per_second).long()


def seconds_per_grid(clip: Clip) -> float:
    """Return the unit of Qwen2.5-VL's rotary positions: the time that one merged patch covers.

    As qwen-vl-utils computes it (duration / frames · step); to 8 significant bits, which every dtype holds exactly.
    """
    per_frame = clip.duration_s / len(clip.times_s) or 1 / clip.sampling.fps
    fraction, exponent = math.frexp(per_frame * clip.sampling.step)
    return math.ldexp(round(fraction * 256), exponent - 8)


def _runs(visual: Tensor) -> list[tuple[bool, int]]:
    values, counts = torch.unique_consecutive(visual, return_counts=True)
    return list(zip(values.tolist(), counts.tolist(), strict=True))
