"""How much a response looks at pictures while it is written, as a reward.

The visual-anchored reward of AVAR (arXiv 2603.03825), and that of LASER (arXiv 2607.01707), a control that is known to
be bad. Suffixes: L layers, R rows, T keys.
"""

from __future__ import annotations

from math import exp

import torch
from torch import Tensor

from ral_system.attention.group import GroupAttention
from ral_system.attention.provenance import KeyKind, KeyProvenance
from ral_system.config.reward import VisualRewardForm

EPSILON = 1e-6
WINDOW, STRIDE = 10, 5
"""Rows of LASER's windows, and from one to the next."""


@torch.no_grad()
def response_visual_rewards(
    attention: GroupAttention, keys: KeyProvenance, form: VisualRewardForm
) -> tuple[float | None, ...]:
    """r_vis of each response of a group, were it right. V and S are a row's attention on visual and system keys:

        share: mean of V / (V + S), in [0, 1];    ratio, as AVAR writes it: mean of V / (S + 1e-6), without upper bound
        laser_pays_length: `decay_reward` of V

    V = Σ_{k visual} A_tk and S = Σ_{k system} A_tk; A: layer l's attention to earlier keys, mean over heads
    (`attention` must be read so). Means are over a response's rows t and the layers l; LASER's V is that over layers.
    None without a picture or a row, and for AVAR's without a system turn: then undefined. A row with neither mass is 0.
    `keys` are the group's.
    """
    is_visual_T = (keys.kind == KeyKind.IMAGE) | (keys.kind == KeyKind.VIDEO)
    is_system_T = keys.kind == KeyKind.SYSTEM
    is_laser = form == "laser_pays_length"
    if not (is_visual_T.any() and (is_laser or is_system_T.any()) and len(attention.rows)):
        return (None,) * len(attention.counts)
    layers = []
    for layer in range(len(attention.layers)):
        found = []
        for policy_RT in attention.policies(layer):
            visual_R, system_R = policy_RT[:, is_visual_T].sum(-1), policy_RT[:, is_system_T].sum(-1)
            total_R = (visual_R + system_R).clamp_min(torch.finfo(visual_R.dtype).tiny)
            quotient_R = visual_R / (total_R if form == "share" else system_R + EPSILON)
            found.append(visual_R if is_laser else quotient_R)
        layers.append(torch.cat(found))
    by_response = torch.stack(layers).mean(0).split(attention.counts)
    return tuple(
        (decay_reward(rows) if is_laser else float(rows.mean())) if len(rows) else None for rows in by_response
    )


def decay_reward(visual_R: Tensor) -> float:
    """LASER's R_vis = 0.1 · Σ_i (exp(-5 (1 - w_i / max w)) - 0.015), from the attention of each row on pictures.

    w_i are its means over whole windows of 10 rows, each 5 rows after the one before; a shorter response is one window.
    Meant to pay for attention that does not decay, it pays for length: every window that does not fall to a sixth of
    the largest adds to it. 0 for a response that does not look at all.
    """
    windows = visual_R.unfold(0, min(WINDOW, len(visual_R)), STRIDE).mean(-1).double()
    largest = float(windows.max())
    if largest <= 0:
        return 0.0
    return 0.1 * sum(exp(-5 * (1 - w / largest)) - 0.015 for w in windows.tolist())
