"""Qwen3-VL, with pictures. Its videos, whose frames are apart with time stamps between them, are not served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from ral_system.attention.sequence import SequenceGroup
from ral_system.errors import DataError
from ral_system.families.family import Encoded, Features, Occurrences
from ral_system.families.qwen_vl.family import QwenVl
from ral_system.families.qwen_vl.vision import DealtViews
from ral_system.types import Layout, Media

_DEEPSTACK = "visual_pos_masks", "deepstack_visual_embeds"
"""The text model's inputs for what some layers of the encoder saw."""


class Qwen3Vl(QwenVl):
    """Qwen3-VL (arXiv 2511.21631). Its text layers add what some layers of the encoder saw (DeepStack)."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    attention_classes: ClassVar[tuple[str, ...]] = ("Qwen3VLTextAttention",)

    def layout(self, media: Media) -> Layout:
        """Raises DataError for a video."""
        if media.clip is not None:
            raise DataError("videos are not served for qwen3_vl; use Qwen2.5-VL, or questions about pictures")
        return super().layout(media)

    def encode(self, model: Any, features: Features, sequence: SequenceGroup | None = None) -> Encoded:
        """What the encoder sees in each picture: a tuple of [tokens, E], for its end and for some of its layers."""
        if not features and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                "text alone on several ranks is not served for qwen3_vl: ranks with pictures would wait for this one; "
                "leave such questions out"
            )
        if not features:
            return {}
        views = DealtViews(features["image_grid_thw"], model.visual.spatial_merge_size, sequence)
        found = model.get_image_features(views.own(features["pixel_values"]), views.own_grids, return_dict=True)
        streams = (found.pooler_output, *found.deepstack_features)
        return {"image": tuple(zip(*map(views.of_media, streams), strict=True))}

    def inputs(self, encoded: Encoded, occurrences: Occurrences) -> dict[str, Any]:
        if not encoded:
            return {}
        whole, *layers = zip(*(encoded["image"][i] for i in occurrences["image"]), strict=True)
        output = BaseModelOutputWithDeepstackFeatures(pooler_output=whole, deepstack_features=layers)
        return {"mm_encoder_outputs": {"image": output}}

    def own_tokens(self, inputs: Mapping[str, Any], own: slice) -> dict[str, Any]:
        found, (seen_1T, layers) = super().own_tokens(inputs, own), (inputs[name] for name in _DEEPSTACK)
        if layers is None:
            return found
        visual = slice(int(seen_1T[:, : own.start].sum()), int(seen_1T[:, : own.stop].sum()))
        return found | dict(zip(_DEEPSTACK, (seen_1T[:, own], [layer[visual] for layer in layers]), strict=True))

    def projector(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        visual = model.model.visual
        return (visual.merger, *visual.deepstack_merger_list)
