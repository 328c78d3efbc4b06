"""Where answers look on their pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ral_system.attention.metrics import visual_maps
from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator
from ral_system.scoring.scores import mean_over_heads
from ral_system.training.engine import Engine
from ral_system.types import Sample, VisualAttention


@torch.no_grad()
def looks(
    engine: Engine, collate: Collator, samples: Sequence[Sample], read: AttentionRead
) -> dict[str, VisualAttention]:
    """Maps of the mean attention of each sample's rows over its visual keys, by sample id. Every rank calls it."""
    views = {}
    for sample in samples:
        batch = collate((sample,)).to(engine.device)
        (rows,) = engine.forward(batch, [read]).attention[read]
        policy_RT = torch.cat([mean_over_heads(block) for block in rows.policies(-1)])
        maps = visual_maps(policy_RT.mean(0), batch.keys, batch.layouts[0])
        views[sample.id] = VisualAttention(tuple(m.float().cpu().numpy() for m in maps))
    return views
