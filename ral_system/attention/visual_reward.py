"""The visual-anchored reward (AVAR, arXiv 2603.03825): how much a response looks at pictures while it is written.

Suffixes: R rows, T keys.
"""

from __future__ import annotations

import torch

from ral_system.attention.group import GroupAttention
from ral_system.attention.provenance import KeyKind, KeyProvenance
from ral_system.config.reward import VisualRewardForm

EPSILON = 1e-6


@torch.no_grad()
def response_visual_rewards(
    attention: GroupAttention, keys: KeyProvenance, form: VisualRewardForm
) -> tuple[float | None, ...]:
    """r_vis of each response of a group, were it right: the mean over its rows t and the layers l of

        share: V / (V + S), in [0, 1];    ratio, as the paper writes it: V / (S + 1e-6), which has no upper bound

    V = Σ_{k visual} A_tk and S = Σ_{k system} A_tk; A: layer l's attention to earlier keys, mean over heads
    (`attention` must be read so). None without a system turn, a picture or a row: then undefined. A row with neither
    mass is 0. `keys` are the group's.
    """
    is_visual_T = (keys.kind == KeyKind.IMAGE) | (keys.kind == KeyKind.VIDEO)
    is_system_T = keys.kind == KeyKind.SYSTEM
    if not (is_visual_T.any() and is_system_T.any() and len(attention.rows)):
        return (None,) * len(attention.counts)
    layers = []
    for layer in range(len(attention.layers)):
        found = []
        for policy_RT in attention.policies(layer):
            visual_R, system_R = policy_RT[:, is_visual_T].sum(-1), policy_RT[:, is_system_T].sum(-1)
            total_R = (visual_R + system_R).clamp_min(torch.finfo(visual_R.dtype).tiny)
            found.append(visual_R / (total_R if form == "share" else system_R + EPSILON))
        layers.append(torch.cat(found))
    by_response = torch.stack(layers).mean(0).split(attention.counts)
    return tuple(float(rows.mean()) if len(rows) else None for rows in by_response)
