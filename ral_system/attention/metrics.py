"""Statistics of what attention rows look at. Suffixes: R rows, T keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ral_system.attention.provenance import KeyKind, KeyProvenance

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


def visual_maps(mass_T: Tensor, keys: KeyProvenance) -> list[Tensor]:
    """Mass per visual token of one sequence: of each image, then of each video, [frames, grid height, grid width]."""
    found = []
    for kind in (KeyKind.IMAGE, KeyKind.VIDEO):
        of_kind = keys.kind == kind
        for index in range(int(keys.media[of_kind].max()) + 1 if of_kind.any() else 0):
            at = (of_kind & (keys.media == index)).nonzero()[:, 0]
            grid = [int(axis[at].max()) + 1 for axis in (keys.frame, keys.row, keys.column)]
            found.append(mass_T[at].view(grid))
    return found


def row_statistics(policy_RT: Tensor, keys: KeyProvenance) -> dict[str, Tensor]:
    """Per row, [R] each, of a policy over all earlier keys.

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


def _of_visual(looks_RN: Tensor, shows_N: Tensor) -> dict[str, Tensor]:
    """Statistics of the rows' parts on the N visual keys, of which each shows so much evidence."""
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
