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

    `visual_mass`, `system_mass`, `text_mass`, `generated_mass`: shares of the row, which add up to 1. `sink_mass`:
    on the first tokens, whatever they are. `vas`: visual over system mass of this row, large where the latter is
    small, so read it beside both; absent without a system turn. (The score of arXiv 2603.03825 is a mean over all
    layers, heads and the question's rows.) `entropy`: -Σ p ln p, in nats. `image_<i>_mass`, `frame_<t>_mass`: of
    the sequence's i-th image and its videos' t-th frames, where there are such. `evidence_mass`: share of the visual
    mass that is on evidence, to which a key adds by the share of it that is covered; `evidence_area`: the same of a row
    that looks at all visual keys alike; `pointing`: 1 where the visual key that is looked at most shows any evidence,
    else 0; absent where no key does. A row without keys is 0 everywhere, but for the area.
    """

    def mass(chosen_T: Tensor) -> Tensor:
        return policy_RT[:, chosen_T].sum(-1)

    is_image, is_video = keys.kind == KeyKind.IMAGE, keys.kind == KeyKind.VIDEO
    found = {
        "visual_mass": mass(is_image | is_video),
        "system_mass": mass(keys.kind == KeyKind.SYSTEM),
        "text_mass": mass(keys.kind == KeyKind.TEXT),
        "generated_mass": mass(keys.kind == KeyKind.GENERATED),
        "sink_mass": mass(keys.position < SINK_TOKENS),
        "entropy": torch.special.entr(policy_RT).sum(-1),
    }
    if (keys.kind == KeyKind.SYSTEM).any():
        found["vas"] = found["visual_mass"] / (found["system_mass"] + VAS_EPSILON)
    if (keys.evidence > 0).any():
        found |= _of_evidence(policy_RT, is_image | is_video, keys.evidence)
    for i in range(MEDIA_SHOWN):
        if (chosen := is_image & (keys.media == i)).any():
            found[f"image_{i}_mass"] = mass(chosen)
    for t in range(FRAMES_SHOWN):
        if (chosen := is_video & (keys.frame == t)).any():
            found[f"frame_{t}_mass"] = mass(chosen)
    return found


def _of_evidence(policy_RT: Tensor, visual_T: Tensor, evidence_T: Tensor) -> dict[str, Tensor]:
    looks_RN, shows_N = policy_RT[:, visual_T], evidence_T[visual_T].to(policy_RT.dtype)
    mass_R = looks_RN.sum(-1)
    return {
        "evidence_mass": looks_RN @ shows_N / mass_R.clamp_min(torch.finfo(mass_R.dtype).tiny),
        "evidence_area": shows_N.mean().expand(len(looks_RN)),
        "pointing": ((shows_N[looks_RN.argmax(-1)] > 0) & (mass_R > 0)).to(policy_RT.dtype),
    }
