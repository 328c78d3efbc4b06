"""Statistics of what attention rows look at. Suffixes: R rows, T keys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ral_system.attention.provenance import KeyKind, KeyProvenance
from ral_system.types import Layout

SINK_TOKENS = 4
"""The first tokens of a sequence, on which models park attention they have no use for (arXiv 2309.17453)."""
MEDIA_SHOWN = 4
FRAMES_SHOWN = 8
"""Images and frames with their own figure; further ones only count in the visual mass."""
VAS_EPSILON = 1e-6

STATISTICS = (
    "visual_mass",
    "system_mass",
    "text_mass",
    "generated_mass",
    "sink_mass",
    "vas",
    "entropy",
    "visual_entropy",
    "evidence_mass",
    "evidence_area",
    "pointing",
    *(f"image_{i}_mass" for i in range(MEDIA_SHOWN)),
    *(f"frame_{t}_mass" for t in range(FRAMES_SHOWN)),
)
"""Every name that `row_statistics` may return."""


def visual_maps(mass_T: Tensor, keys: KeyProvenance, layouts: Sequence[Layout]) -> list[Tensor]:
    """Mass on the places of one sequence's media, in order: of each image, then of each video, [frames, rows, columns].

    The places are those of a medium's finest view. A token of a coarser one, such as a thumbnail, divides its mass
    among the places that it covers; a token that ends a line has none and is left out.
    """
    of_media = mass_T[(keys.kind == KeyKind.IMAGE) | (keys.kind == KeyKind.VIDEO)].split([m.tokens for m in layouts])
    images_first = sorted(zip(of_media, layouts, strict=True), key=lambda pair: pair[1].kind)
    return [_map(mass_N, layout) for mass_N, layout in images_first]


def _map(mass_N: Tensor, layout: Layout) -> Tensor:
    rows, columns = layout.finest_grid
    found = mass_N.new_zeros((max(view.frame for view in layout.views) + 1, rows, columns))
    for view, own in zip(layout.views, mass_N.split([view.tokens for view in layout.views]), strict=True):
        left, top, right, bottom = view.box
        placed = own.view(view.rows, view.columns + view.line_end)[:, : view.columns]
        down, across = _shares(view.rows, top, bottom, rows), _shares(view.columns, left, right, columns)
        found[view.frame] += down.to(placed) @ placed @ across.to(placed).T
    return found


def _shares(tokens: int, start: float, end: float, places: int) -> Tensor:
    """Along one side, the share of each token of a view from `start` to `end` on each place: [places, tokens]."""
    of_tokens = start + (end - start) * torch.arange(tokens + 1, dtype=torch.float64) / max(1, tokens)
    of_places = torch.arange(places + 1, dtype=torch.float64)[:, None] / places
    shared = torch.minimum(of_tokens[1:], of_places[1:]) - torch.maximum(of_tokens[:-1], of_places[:-1])
    return (shared.clamp_min(0) * tokens / (end - start)).round(decimals=9)  # exactly 1 where they coincide


def row_statistics(policy_RT: Tensor, keys: KeyProvenance) -> dict[str, Tensor]:
    """Compute the statistics of each row, [R] each, of a policy over all earlier keys.

    `visual_mass`, `system_mass`, `text_mass`, `generated_mass`: shares of the row, which add up to 1. `sink_mass`: on
    the first tokens, whatever they are. `vas`: visual over system mass of this row, large where the latter is small, so
    read it beside both; absent without a system turn. (The score of arXiv 2603.03825 is a mean over all layers, heads
    and the question's rows.) `entropy`: -Σ p ln p, in nats. `visual_entropy`: the same of the row's part on visual
    keys, divided by its sum: ln n where it looks at n of them alike; absent without visual keys. `image_<i>_mass`,
    `frame_<t>_mass`: of the sequence's i-th image and its videos' t-th frames, where there are such. `evidence_mass`:
    share of the visual mass that is on evidence, to which a key adds by the share of it that is covered;
    `evidence_area`: the same of a row that looks at all visual keys alike; `pointing`: 1 where the visual key that is
    looked at most shows any evidence, else 0; absent where no key does. A row without keys is 0 everywhere, but for the
    area.
    """

    def mass(chosen_T: Tensor) -> Tensor:
        return policy_RT[:, chosen_T].sum(-1)

    is_image, is_video = keys.kind == KeyKind.IMAGE, keys.kind == KeyKind.VIDEO
    is_visual = is_image | is_video
    found = {
        "visual_mass": mass(is_visual),
        "system_mass": mass(keys.kind == KeyKind.SYSTEM),
        "text_mass": mass(keys.kind == KeyKind.TEXT),
        "generated_mass": mass(keys.kind == KeyKind.GENERATED),
        "sink_mass": mass(keys.position < SINK_TOKENS),
        "entropy": torch.special.entr(policy_RT).sum(-1),
    }
    if (keys.kind == KeyKind.SYSTEM).any():
        found["vas"] = found["visual_mass"] / (found["system_mass"] + VAS_EPSILON)
    if is_visual.any():
        found |= _of_visual(policy_RT[:, is_visual], keys.evidence[is_visual])
    for i in range(MEDIA_SHOWN):
        if (chosen := is_image & (keys.media == i)).any():
            found[f"image_{i}_mass"] = mass(chosen)
    for t in range(FRAMES_SHOWN):
        if (chosen := is_video & (keys.frame == t)).any():
            found[f"frame_{t}_mass"] = mass(chosen)
    return found


def decay(visual_mass_R: np.ndarray) -> float | None:
    """Visual mass of the second half of a response's rows over that of the first; the middle one of an odd number is in
    neither. None with a single row, or if the first half sees nothing.
    """
    half = len(visual_mass_R) // 2
    first = float(visual_mass_R[:half].mean(dtype=np.float64)) if half else 0.0
    return float(visual_mass_R[-half:].mean(dtype=np.float64)) / first if first > 0 else None


def _of_visual(looks_RN: Tensor, shows_N: Tensor) -> dict[str, Tensor]:
    """Statistics of the rows' parts on the N visual keys; `shows_N` is the evidence that each shows."""
    mass_R = looks_RN.sum(-1)
    shares_RN = looks_RN / mass_R[:, None].clamp_min(torch.finfo(mass_R.dtype).tiny)
    found = {"visual_entropy": torch.special.entr(shares_RN).sum(-1)}
    if (shows_N > 0).any():
        found |= {
            "evidence_mass": shares_RN @ shows_N.to(looks_RN.dtype),
            "evidence_area": shows_N.to(looks_RN.dtype).mean().expand(len(looks_RN)),
            "pointing": ((shows_N[looks_RN.argmax(-1)] > 0) & (mass_R > 0)).to(looks_RN.dtype),
        }
    return found
