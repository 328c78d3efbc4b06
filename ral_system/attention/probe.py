"""Reads the last layer's query and key beside the fast attention kernel, without changing what the model computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "probed_sdpa"
"""Load models with `attn_implementation=IMPLEMENTATION` to make them probeable."""

KNOWN_ATTENTION = ("Qwen2VLAttention", "Qwen2_5_VLAttention", "Qwen3VLTextAttention", "Qwen2Attention")
"""Attention classes whose interface call is known to pass query and key after rotary embedding."""

_ATTRIBUTE = "_attention_capture"


def _probed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segment_lengths: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """sdpa; with `segment_lengths` (a keyword of the model's forward), of sequences that are packed into one.

    Each sequence then runs alone, so nothing leaks and no mask is needed; a vision encoder, which separates its
    pictures itself, is left alone.
    """
    capture: Capture | None = getattr(module, _ATTRIBUTE, None)
    if capture is not None and capture.query is None:  # not again when a checkpointed layer is recomputed
        capture.query, capture.key, capture.scale = query, key, float(kwargs["scaling"])
    if segment_lengths is None or not getattr(module, "is_causal", True):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if attention_mask is not None or kwargs.get("sliding_window") is not None:
        raise ValueError("packed sequences take no attention mask and no sliding window")
    parts = zip(*(tensor.split(segment_lengths, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in parts], dim=1), None


AttentionInterface.register(IMPLEMENTATION, _probed_sdpa)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


class Capture:
    """What one forward pass showed: query [B, H, T, D], key [B, K, T, D] after rotary embedding, and the scale."""

    def __init__(self) -> None:
        self.query: Tensor | None = None
        self.key: Tensor | None = None
        self.scale = 1.0

    def sequences(self, lengths: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
        """Query [T_b, H, D] and key [T_b, K, D] of each of the sequences that were packed into one."""
        assert self.query is not None and self.key is not None, "the probed layer did not run"
        queries, keys = (t[0].transpose(0, 1).split(lengths) for t in (self.query, self.key))
        return list(zip(queries, keys, strict=True))


class AttentionProbe:
    """A probe on a model's last text layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        implementation = model.config.get_text_config()._attn_implementation
        if implementation != IMPLEMENTATION:
            raise ValueError(f"the model runs attention {implementation!r}; load it with {IMPLEMENTATION!r}")
        layers = model.get_decoder().layers
        self._layer: nn.Module = layers[-1].self_attn
        if type(self._layer).__name__ not in KNOWN_ATTENTION:
            raise ValueError(
                f"attention probe does not know {type(self._layer).__name__}; known: {', '.join(KNOWN_ATTENTION)}"
            )

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """Capture the forward pass inside the block."""
        capture = Capture()
        setattr(self._layer, _ATTRIBUTE, capture)
        try:
            yield capture
        finally:
            setattr(self._layer, _ATTRIBUTE, None)
