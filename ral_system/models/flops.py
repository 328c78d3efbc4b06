"""Floating-point operations of a model's forward pass, counted from its weights and the pairs of tokens that attend.

A multiplication and an addition are two operations. Norms, activations and softmax are left out, as is usual, and so
are products with parameters outside of linear layers (Gemma 3's projection, 0.1 % of a token's work in 4B). A
backward pass takes twice as many as the forward pass of what is trained, and once as many where only adapters are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from ral_system.attention.packing import PackedGroup, Packing
from ral_system.families.family import Family
from ral_system.types import Layout


class FlopCounter:
    """Counts for one model."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        text = model.config.get_text_config()
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        by_matrices = 2 * sum(_weights(layer) for layer in model.get_decoder().layers)
        self._by_token = by_matrices + family.linear_attention_flops
        self._by_pair = 4 * text.num_attention_heads * width
        softmax = [layer for layer in family.attention_layers(model) if layer is not None]
        self._windows = Counter(getattr(layer, "sliding_window", None) for layer in softmax)
        self._by_logits = 2 * text.vocab_size * text.hidden_size
        projector = list(family.projector(model))
        self._family = family
        encoder = family.vision_encoder(model)
        inside = set(encoder.modules())
        self._by_visual_token = 2 * sum(map(_weights, projector))
        self._by_patch = 2 * (_weights(encoder) - sum(_weights(part) for part in projector if part in inside))

    def text(self, packing: Packing, *, shared: bool = True) -> int:
        """The text layers over a stream; not `shared`: over every sequence with a prompt of its own."""
        tokens = packing.tokens if shared else packing.unshared_tokens
        pairs = sum(
            layers * _pairs(group, window, shared=shared)
            for window, layers in self._windows.items()
            for group in packing.groups
        )
        return self._by_token * tokens + self._by_pair * pairs

    def head(self, tokens: int) -> int:
        """Logits of so many tokens."""
        return self._by_logits * tokens

    def vision(self, layouts: Iterable[Layout]) -> int:
        """The vision encoder and the projector over media."""
        return sum(
            self._by_patch * (layout.patches or layout.tokens * self._family.patches_per_token)
            + self._by_visual_token * layout.tokens
            + self._family.vision_attention_flops(layout)
            for layout in layouts
        )


def update_passes(module: nn.Module) -> int:
    """Return the cost of an update in forward passes of a module: 3, 2 if only adapters train, 1 if nothing does."""
    trained = [parameter.requires_grad for parameter in module.parameters()]
    return 3 if all(trained) else 2 if any(trained) else 1


def _weights(module: nn.Module) -> int:
    """Numbers in the matrices that a module's inputs are multiplied with, by its modules: ranks may share weights."""
    parts = list(module.modules())
    linear = sum(part.in_features * part.out_features for part in parts if isinstance(part, nn.Linear))
    return linear + sum(
        part.in_channels // part.groups * part.out_channels * math.prod(part.kernel_size)
        for part in parts
        if isinstance(part, (nn.Conv2d, nn.Conv3d))
    )


def _pairs(group: PackedGroup, window: int | None, *, shared: bool) -> int:
    """Pairs of a token and one that it attends to."""
    ahead = sum((end - first) * (end - first - 1) // 2 for first, end in group.pictures)
    prompt = _causal_pairs(group.prompt, window)
    own = sum(_causal_pairs(group.prompt + length, window) - prompt for length in group.responses)
    return own + (1 if shared else len(group.responses)) * (prompt + ahead)


def _causal_pairs(tokens: int, window: int | None) -> int:
    """Pairs of a token of a sequence and itself or one before it, within the window."""
    full = tokens if window is None else min(tokens, window)
    return full * (full + 1) // 2 + (tokens - full) * full
