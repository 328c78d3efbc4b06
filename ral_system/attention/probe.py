"""Reads some layers' query and key beside the fast attention kernel, without changing what the model computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ral_system.attention.sequence import LayerAttention

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
    """What one layer showed in a forward pass: query [B, H, T, D] and key [B, K, T, D] after rotary embedding."""

    def __init__(self) -> None:
        self.query: Tensor | None = None
        self.key: Tensor | None = None
        self.scale = 1.0

    def sequences(self, lengths: tuple[int, ...]) -> list[LayerAttention]:
        """Of each of the sequences that were packed into one."""
        assert self.query is not None and self.key is not None, "the probed layer did not run"
        assert len(self.query) == 1, "a packed batch has one row of tokens"
        queries, keys = (t[0].transpose(0, 1).split(lengths) for t in (self.query, self.key))
        return [LayerAttention(query, key, self.scale) for query, key in zip(queries, keys, strict=True)]


class AttentionProbe:
    """A probe on some of a model's text layers."""

    def __init__(self, model: PreTrainedModel, layers: Literal["last", "all"] | Sequence[int] = "last") -> None:
        implementation = model.config.get_text_config()._attn_implementation
        if implementation != IMPLEMENTATION:
            raise ValueError(f"the model runs attention {implementation!r}; load it with {IMPLEMENTATION!r}")
        modules = [layer.self_attn for layer in model.get_decoder().layers]
        indices = {"last": [-1], "all": range(len(modules))}[layers] if isinstance(layers, str) else layers
        if wrong := [i for i in indices if not -len(modules) <= i < len(modules)]:
            raise ValueError(f"layers={list(indices)}: the model has {len(modules)} layers, so no layer {wrong[0]}")
        chosen = sorted(i % len(modules) for i in indices)  # the deepest last, whose rows are looked at
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"layers={list(indices)} names a layer of the model's {len(modules)} twice")
        self._layers: list[nn.Module] = [modules[i] for i in chosen]
        for layer in self._layers:
            if type(layer).__name__ not in KNOWN_ATTENTION:
                raise ValueError(
                    f"attention probe does not know {type(layer).__name__}; known: {', '.join(KNOWN_ATTENTION)}"
                )

    @contextmanager
    def capture(self) -> Iterator[list[Capture]]:
        """Capture the forward pass inside the block, one `Capture` per probed layer."""
        captures = [Capture() for _ in self._layers]
        for layer, capture in zip(self._layers, captures, strict=True):
            setattr(layer, _ATTRIBUTE, capture)
        try:
            yield captures
        finally:
            for layer in self._layers:
                setattr(layer, _ATTRIBUTE, None)
