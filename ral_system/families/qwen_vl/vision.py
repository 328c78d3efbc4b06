"""The vision encoder, once per micro-batch whatever it holds, so that ranks under ZeRO-3 gather the same parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ral_system.families.family import Encoded, Features


def encoded_media(model: Any, features: Features) -> Encoded:
    """What the encoder of a transformers model (without its head) sees: [tokens, E] of each picture and video.

    Pictures and videos go through it together. Without either, it sees one black patch, and none of that is used: a
    rank whose micro-batch is text alone takes part in what the others gather and reduce.
    """
    pixels = [features[name] for name in ("pixel_values", "pixel_values_videos") if name in features]
    grids = [features[name] for name in ("image_grid_thw", "video_grid_thw") if name in features]
    images = len(features.get("image_grid_thw", ()))
    if not features:
        pixels, grids = _black_patch(model)
    found = model.get_image_features(torch.cat(pixels), torch.cat(grids), return_dict=True).pooler_output
    if not features:
        return {"image": (found[0][:0],)}
    return {"image": tuple(found[:images]), "video": tuple(found[images:])}


def _black_patch(model: Any) -> tuple[list[Tensor], list[Tensor]]:
    config, merge = model.config.vision_config, model.visual.spatial_merge_size
    device = next(model.visual.parameters()).device
    values = config.in_channels * config.temporal_patch_size * config.patch_size**2
    pixels = torch.zeros(merge**2, values, device=device)
    return [pixels], [torch.tensor([[1, merge, merge]], device=device)]
