"""GLM-4.1V: pictures as in Qwen2-VL, videos as pictures with their times between them, under the pictures' token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ral_system.families.family import Encoded, Occurrences
from ral_system.families.qwen_vl.pixel_budget import QwenPixelBudget
from ral_system.families.qwen_vl.timed import TimedFrames
from ral_system.types import MediaKind, View


@dataclass(frozen=True, slots=True)
class Glm4vPixelBudget(QwenPixelBudget):
    """The rule of GLM's processors: a side below `factor` is enlarged first, and a picture counts as two frames."""

    def resized(self, width: int, height: int, low: int, high: int) -> tuple[int, int]:
        from transformers.models.glm4v.image_processing_glm4v import smart_resize

        tall, wide = smart_resize(2, height, width, 2, self.factor, 2 * low, 2 * high)
        return wide, tall


class Glm4v(TimedFrames):
    """GLM-4.1V (arXiv 2507.01006). M-RoPE turns a part of each head alone."""

    model_types: ClassVar[tuple[str, ...]] = ("glm4v",)
    attention_classes: ClassVar[tuple[str, ...]] = ("Glm4vTextAttention",)
    max_media: ClassVar[Mapping[MediaKind, int]] = {**TimedFrames.max_media, "video": 1}  # as vLLM has it
    pixel_budget: ClassVar[type[QwenPixelBudget]] = Glm4vPixelBudget
    frame_settings: ClassVar[Mapping[str, Any]] = {"do_sample_frames": False, "do_resize": False}

    def __init__(self, config: PretrainedConfig, processor: Any) -> None:
        super().__init__(config, processor)
        ids = [config.image_start_token_id, config.image_end_token_id]
        self._start, self._end = self.tokenizer.convert_ids_to_tokens(ids)

    @staticmethod
    def bounds(size: Mapping[str, int]) -> tuple[int, int]:
        """The processor's own count both of the frames that a picture is made of."""
        return -(-size["shortest_edge"] // 2), size["longest_edge"] // 2

    @property
    def visual_ids(self) -> Mapping[MediaKind, int]:
        token = self.processor.image_token_id
        return {"image": token, "video": token}

    @property
    def banned_ids(self) -> tuple[int, ...]:
        of_media = ("image", "image_start", "image_end", "video", "video_start", "video_end")
        return tuple(sorted(getattr(self.config, f"{name}_token_id") for name in of_media))

    def time_of(self, times_s: Sequence[float]) -> float:
        """The first frame's."""
        return times_s[0]

    def stamped(self, view: View) -> str:
        return f"{self._start}{self.placeholders['image'] * view.tokens}{self._end}{int(view.seconds)}"

    def inputs(self, encoded: Encoded, occurrences: Occurrences) -> dict[str, Any]:
        """Pictures and videos go in together, in their order: their tokens do not tell them apart."""
        if not occurrences:
            return super().inputs(encoded, occurrences)
        parts = tuple(encoded[kind][i] for kind, i in occurrences)
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=parts)}}

    def projector(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        visual = model.model.visual
        return (visual.downsample, visual.merger)

    def engine_arguments(self) -> dict[str, Any]:
        """vLLM gives q, k and v a bias only where the configuration says so, and transformers always has one."""
        return super().engine_arguments() | {"hf_overrides": {"text_config": {"attention_bias": True}}}
