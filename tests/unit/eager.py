"""Results of transformers itself for a batch, for tests to compare with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ral_system.attention.provenance import KeyKind
from ral_system.batches.collate import TensorBatch


def token_types(batch: TensorBatch) -> Tensor:
    """transformers' mm_token_type_ids of a batch, int64 [T]: 1 on tokens of pictures, 2 on those of videos."""
    return (batch.keys.kind == KeyKind.IMAGE) * 1 + (batch.keys.kind == KeyKind.VIDEO) * 2


def media_inputs(batch: TensorBatch) -> dict[str, Tensor]:
    """Pixels, grids and token types of a batch as one row, under the names of transformers' forward pass.

    A medium is there as often as it occurs.
    """
    found = {"mm_token_type_ids": token_types(batch)[None]}
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        grid = f"{kind}_grid_thw"
        if grid in batch.features:
            at, grids = [i for of, i in batch.occurrences if of == kind], batch.features[grid]
            parts = batch.features[pixels].split(grids.prod(-1).tolist())
            found |= {pixels: torch.cat([parts[i] for i in at]), grid: grids[at]}
    return found


def eager_attentions(model: Any, alone: TensorBatch) -> tuple[Tensor, ...]:
    """[1, H, T, T] of each layer, for a batch of one sequence; `model` is loaded with `attn_implementation="eager"`."""
    return model(input_ids=alone.input_ids[None], **media_inputs(alone), output_attentions=True).attentions
