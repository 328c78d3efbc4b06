"""Qwen3-VL: pictures as in Qwen2.5-VL, videos as pictures with their times between them, and DeepStack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from ral_system.attention.sequence import SequenceGroup
from ral_system.families.family import Encoded, Features, Occurrences
from ral_system.families.qwen_vl.timed import TimedFrames
from ral_system.families.qwen_vl.vision import encoded_media, in_places
from ral_system.types import View

_DEEPSTACK = "visual_pos_masks", "deepstack_visual_embeds"
"""The text model's inputs for what some layers of the encoder saw."""


class Qwen3Frames(TimedFrames):
    """Videos as Qwen3-VL's processor writes them."""

    def time_of(self, times_s: Sequence[float]) -> float:
        """The middle between the first frame and the last one."""
        return (times_s[0] + times_s[-1]) / 2

    def stamped(self, view: View) -> str:
        """Replaces the placeholder alone, as transformers does since 5.10: what the template writes around it stays."""
        start, token, end = (
            self.processor.vision_start_token,
            self.placeholders["video"],
            self.processor.vision_end_token,
        )
        return f"<{view.seconds:.1f} seconds>{start}{token * view.tokens}{end}"


class Qwen3Vl(Qwen3Frames):
    """Qwen3-VL (arXiv 2511.21631). Its text layers add what some layers of the encoder saw (DeepStack)."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    attention_classes: ClassVar[tuple[str, ...]] = ("Qwen3VLTextAttention",)

    def encode(self, model: Any, features: Features, sequence: SequenceGroup | None = None) -> Encoded:
        """Encode each medium: a tuple of [tokens, E], for the encoder's end and for some of its layers."""
        return encoded_media(model, features, sequence, lambda found: (found.pooler_output, *found.deepstack_features))

    def inputs(self, encoded: Encoded, occurrences: Occurrences) -> dict[str, Any]:
        outputs = {}
        for kind, parts in in_places(encoded, occurrences).items():
            whole, *layers = zip(*parts, strict=True)
            outputs[kind] = BaseModelOutputWithDeepstackFeatures(pooler_output=whole, deepstack_features=layers)
        return {"mm_encoder_outputs": outputs}

    def own_tokens(self, inputs: Mapping[str, Any], own: slice) -> dict[str, Any]:
        found, (seen_1T, layers) = super().own_tokens(inputs, own), (inputs[name] for name in _DEEPSTACK)
        if layers is None:
            return found
        visual = slice(int(seen_1T[:, : own.start].sum()), int(seen_1T[:, : own.stop].sum()))
        return found | dict(zip(_DEEPSTACK, (seen_1T[:, own], [layer[visual] for layer in layers]), strict=True))

    def projector(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        visual = model.model.visual
        return (visual.merger, *visual.deepstack_merger_list)
