"""Sizes to measure on each device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ral_system.config.choices import Device, Dtype

Variant = Literal["eager_full", "dense", "chunked", "triton", "sdpa"]

TERMS: tuple[Variant, ...] = ("eager_full", "dense", "chunked", "triton")
"""Ways to compute the attention term."""
VARIANTS: tuple[Variant, ...] = (*TERMS, "sdpa")
"""The terms, and the baseline they are compared with: causal attention of one layer."""

LEARNER_LAYERS = 28
"""Layers of the 7B model for which ratios are computed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of one benchmark. The stack's layers have the term's head counts, so its term is the same work."""

    device: Device
    dtype: Dtype
    tokens: tuple[int, ...]
    rows: int
    query_heads: int
    key_heads: int
    head_dim: int
    stack_tokens: tuple[int, ...]
    layers: int
    hidden: int
    intermediate: int
    min_repeats: int
    max_repeats: int
    seconds: float
    """Time to spend repeating the variants at one number of tokens; at least `min_repeats` whatever they cost."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch calls it."""
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found


def plan(
    device: Device, *, quick: bool, tokens: tuple[int, ...] | None = None, stack_layers: int | None = None
) -> Plan:
    """The sizes of a device: on CUDA the last layer of a 7B model, on CPU a small one of the same proportions."""
    if device == "cuda":
        sizes = (64, 28, 4, 128) if quick else (768, 28, 4, 128)
        tokens = tokens or ((1024, 2048) if quick else (4096, 16384, 32768, 131072))
        stack = [t for t in tokens if 4096 <= t <= 16384] or [min(tokens)]
        layers = stack_layers or (1 if quick else 4)
        repeats, seconds = ((3, 5), 1.0) if quick else ((5, 30), 10.0)
        return Plan("cuda", "bfloat16", tokens, *sizes, tuple(stack), layers, 3584, 18944, *repeats, seconds)
    sizes = (16, 4, 2, 16) if quick else (256, 8, 2, 64)
    tokens = tokens or ((128, 256) if quick else (1024, 2048, 4096, 8192))
    stack = [t for t in tokens if 1024 <= t <= 2048] or [min(tokens)]
    layers = stack_layers or (2 if quick else 4)
    hidden = sizes[1] * sizes[3]
    repeats, seconds = ((3, 3), 0.1) if quick else ((3, 20), 8.0)
    return Plan("cpu", "float32", tokens, *sizes, tuple(stack), layers, hidden, hidden * 37 // 7, *repeats, seconds)
