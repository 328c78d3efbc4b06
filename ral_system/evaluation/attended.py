"""Questions with the part of their pictures that answers look at most, or with all but that part; the rest is black.

Sufficiency and comprehensiveness of attention as an explanation (after ERASER, arXiv 1911.03429): a model whose answers
depend on where it looks answers about as well with the first, and badly with the second. Any black part costs accuracy,
so both are compared with a random part of the same size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ral_system.attention.provenance import places
from ral_system.families.family import Family
from ral_system.media.blinding import MaskedMedia
from ral_system.types import Layout, Prompt


def attended_parts(
    prompts: Sequence[Prompt], looks: Mapping[str, np.ndarray], share: float, family: Family
) -> dict[str, list[Prompt]]:
    """The questions four times: `only attended`, `without attended`, and as a control with as many random tokens.

    `looks` has the attention on each visual token by question (`Look.visual`); those that are not in it stay whole.
    Random tokens are a function of the question's id.
    """
    found: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        layouts = [family.layout(medium) for medium in prompt.media]
        visual_N = looks.get(prompt.id, np.zeros(0))
        random = np.random.default_rng(list(hashlib.sha256(prompt.id.encode()).digest()))
        for name, ranking_N in (("attended", visual_N), ("random", random.random(len(visual_N)))):
            seen = seen_blocks(most_attended(ranking_N, layouts, share), layouts) if len(ranking_N) else []
            black = [[~of_medium for of_medium in seen], seen]
            for kept, masks in zip(("only", "without"), black, strict=True):
                found.setdefault(f"{kept} {name}", []).append(_masked(prompt, masks, family) if masks else prompt)
    return found


def _masked(prompt: Prompt, masks: Sequence[np.ndarray], family: Family) -> Prompt:
    media = (
        MaskedMedia.of(medium, black, frames_per_view=family.frames_per_view)
        for medium, black in zip(prompt.media, masks, strict=True)
    )
    return replace(prompt, media=tuple(media))


def most_attended(visual_N: np.ndarray, layouts: Sequence[Layout], share: float) -> np.ndarray:
    """Choose this share of a prompt's visual tokens, rounded, and at least one, by their attention: bool [N].

    Tokens compete across all media of the prompt; the earlier one wins a tie. Tokens that end a line have no place in
    the picture, and are never chosen.
    """
    placed_N = np.concatenate([places(layout)[1].numpy() >= 0 for layout in layouts])
    count = max(1, round(share * int(placed_N.sum())))
    chosen_N = np.zeros(len(visual_N), bool)
    chosen_N[np.argsort(-np.where(placed_N, visual_N, -np.inf), kind="stable")[:count]] = True
    return chosen_N


def seen_blocks(chosen_N: np.ndarray, layouts: Sequence[Layout]) -> list[np.ndarray]:
    """Find the blocks of each medium's finest grid that the chosen tokens show: bool [views, rows, columns].

    Tiles and the whole picture may show the same place: it is seen if any token that shows it is chosen.
    """
    ends = np.cumsum([layout.tokens for layout in layouts])
    return [_seen(own, layout) for own, layout in zip(np.split(chosen_N, ends[:-1]), layouts, strict=True)]


def _seen(chosen_N: np.ndarray, layout: Layout) -> np.ndarray:
    rows, columns = layout.finest_grid
    seen = np.zeros((max(view.frame for view in layout.views) + 1, rows, columns), bool)
    ends = np.cumsum([view.tokens for view in layout.views])
    for own, view in zip(np.split(chosen_N, ends[:-1]), layout.views, strict=True):
        left, top, right, bottom = view.box
        down, row = _within(rows, top, bottom, view.rows)
        across, column = _within(columns, left, right, view.columns)
        chosen = own.reshape(view.rows, view.columns + view.line_end)
        seen[view.frame][np.ix_(down, across)] |= chosen[np.ix_(row, column)]
    return seen


def _within(blocks: int, start: float, end: float, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks along one side whose centres a view covers, and the row or column of its tokens that each falls into."""
    centres = (np.arange(blocks) + 0.5) / blocks
    inside = np.flatnonzero((centres >= start) & (centres < end))
    return inside, ((centres[inside] - start) / (end - start) * tokens).astype(int)
