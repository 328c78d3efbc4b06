"""Qwen3.5: pictures and videos as in Qwen3-VL without DeepStack; most text layers have linear attention."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from transformers import PreTrainedModel

from ral_system.families.gated_delta import PackedGatedDeltaNet
from ral_system.families.qwen3_vl import Qwen3Frames


class Qwen35(Qwen3Frames):
    """Qwen3.5, dense. M-RoPE turns a part of each head alone, and each head's output is gated."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_5",)
    attention_classes: ClassVar[tuple[str, ...]] = ("Qwen3_5Attention",)

    @cached_property
    def linear_layers(self) -> frozenset[int]:
        types = self.config.get_text_config().layer_types
        return frozenset(i for i, of_layer in enumerate(types) if of_layer == "linear_attention")

    @property
    def linear_attention_flops(self) -> int:
        """Operations of the linear layers: in each the convolution, and per value head the products of its state with
        k, k and q."""
        text = self.config.get_text_config()
        convolved = 2 * text.linear_conv_kernel_dim * self._linear_channels
        return len(self.linear_layers) * (convolved + 6 * self._linear_state)

    @property
    def state_bytes(self) -> int:
        """Size of the states in float32, with the q, k and v of the last tokens before the convolution."""
        kept = self.config.get_text_config().linear_conv_kernel_dim - 1
        return 4 * len(self.linear_layers) * (self._linear_state + kept * self._linear_channels)

    @property
    def _linear_state(self) -> int:
        text = self.config.get_text_config()
        return text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim

    @property
    def _linear_channels(self) -> int:
        text = self.config.get_text_config()
        keys, values = text.linear_num_key_heads, text.linear_num_value_heads
        return 2 * keys * text.linear_key_head_dim + values * text.linear_value_head_dim

    def prepare(self, model: PreTrainedModel) -> None:
        for i in self.linear_layers:
            model.get_decoder().layers[i].linear_attn.__class__ = PackedGatedDeltaNet
