"""The visual attention score (AVAR, arXiv 2603.03825): how much more a model looks at pictures than at the system turn.

    VAS_i(l, h) = Σ_{j visual} A_ij / Σ_{j system} A_ij,   A: attention of layer l, head h; i: a token of the question
    VAS = mean over layers, heads and i

Suffixes: R rows, H query heads, T keys, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ral_system.attention.group import GroupAttention
from ral_system.attention.policy import visibility
from ral_system.attention.provenance import KeyKind, KeyProvenance

_BLOCK_BYTES = 64 << 20
"""Size of one block's logits."""


@dataclass(frozen=True, slots=True)
class VisualScore:
    """Means over rows, by layer and head: float64 [L, H] each. The score's denominator rules it: read all three."""

    score: Tensor
    """VAS."""
    visual_mass: Tensor
    system_mass: Tensor
    rows: int
    """How many rows the means are over."""


@torch.no_grad()
def visual_score(attention: GroupAttention, keys: KeyProvenance) -> VisualScore | None:
    """Score a group's rows at every probed layer; None (undefined) without a system turn, a picture or a row.

    Masses are of the whole softmax row, the row's own position included. The ratio is taken between log-sums of logits,
    so no mass is too small to divide by. Memory is linear in the keys.
    """
    is_visual_T = (keys.kind == KeyKind.IMAGE) | (keys.kind == KeyKind.VIDEO)
    is_system_T = keys.kind == KeyKind.SYSTEM
    if not (is_visual_T.any() and is_system_T.any() and len(attention.rows)):
        return None
    layers = []
    for layer in attention.layers:
        tokens, heads = len(layer.key), layer.query.shape[1]
        key_HDT = layer.key.double().repeat_interleave(heads // layer.key.shape[1], dim=1).permute(1, 2, 0)
        size = max(1, _BLOCK_BYTES // (8 * heads * tokens))
        total_3H = torch.zeros(3, heads, dtype=torch.float64, device=layer.key.device)
        for query_RHD, rows_R in zip(layer.query.split(size), attention.rows.split(size), strict=True):
            logits_HRT = query_RHD.double().transpose(0, 1) @ key_HDT * layer.scale
            seen_RT, _ = visibility(rows_R, tokens, attention.branches, None)
            logits_HRT.masked_fill_(~seen_RT, float("-inf"))
            log_all_HR = logits_HRT.logsumexp(-1)
            log_visual_HR = logits_HRT[..., is_visual_T].logsumexp(-1)
            log_system_HR = logits_HRT[..., is_system_T].logsumexp(-1)
            parts = (log_visual_HR - log_system_HR, log_visual_HR - log_all_HR, log_system_HR - log_all_HR)
            total_3H += torch.stack([part.exp().sum(-1) for part in parts])
        layers.append(total_3H / len(attention.rows))
    score, visual, system = torch.stack(layers, dim=1).cpu()
    return VisualScore(score, visual, system, len(attention.rows))


def mean_score(scores: Sequence[VisualScore]) -> VisualScore:
    """Average scores over the rows of several sequences, at least one."""
    rows = sum(s.rows for s in scores)

    def mean(name: str) -> Tensor:
        return torch.stack([getattr(s, name) * (s.rows / rows) for s in scores]).sum(0)

    return VisualScore(mean("score"), mean("visual_mass"), mean("system_mass"), rows)
