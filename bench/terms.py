"""All ways to compute the attention term, and the layer's own attention as the baseline.

Suffixes: T tokens, H query heads, K key heads, D head dimension, R rows, S keys.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast, get_args

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.plan import Plan, Variant
from ral_system.algorithms.divergence_sum import divergence
from ral_system.attention.divergence import attention_divergence
from ral_system.config.choices import Backend, Device


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of a layer's attention and of the term; made before a measurement, so never part of it."""

    query: Tensor
    """[T, H, D], like key and value a leaf of autograd."""
    key: Tensor
    """[T, K, D]"""
    value: Tensor
    """[T, K, D]"""
    output_gradient: Tensor
    """[H, T, D], of the layer's attention output."""
    rows: Tensor
    """int64 [R]"""
    target: Tensor
    """float32 [R, T]"""
    scale: float


def make_inputs(plan: Plan, tokens: int) -> Inputs:
    """Random query, key and value; the last R positions as rows; a random policy as target."""
    random = torch.Generator(plan.device).manual_seed(0)
    kind: dict[str, Any] = {"device": plan.device, "dtype": plan.torch_dtype, "generator": random}
    query = torch.randn(tokens, plan.query_heads, plan.head_dim, **kind).requires_grad_()
    key, value = (torch.randn(tokens, plan.key_heads, plan.head_dim, **kind).requires_grad_() for _ in ("key", "value"))
    gradient = torch.randn(plan.query_heads, tokens, plan.head_dim, **kind)
    rows = torch.arange(max(0, tokens - plan.rows), tokens, device=plan.device)
    return Inputs(query, key, value, gradient, rows, random_target(rows, tokens, random), plan.head_dim**-0.5)


def random_target(rows: Tensor, tokens: int, random: torch.Generator) -> Tensor:
    """Float32 [R, T]: a policy that every row could have had, zeros on the first token's row, which has none."""
    target = torch.rand(len(rows), tokens, device=rows.device, generator=random)
    target.mul_(torch.arange(tokens, device=rows.device) < rows[:, None])
    return target.div_(target.sum(-1, keepdim=True).clamp(min=1e-30))


def unavailable(variant: Variant, device: Device) -> str | None:
    """Return why a variant cannot run here, or None."""
    if variant != "triton":
        return None
    if "triton" not in get_args(Backend):
        return "attention_divergence of this version has no backend 'triton'"
    if device != "cuda":
        return "needs a CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def forward(variant: Variant, x: Inputs) -> Tensor:
    """One forward pass, recorded by autograd: divergences [R], or the attention output [H, T, D]."""
    if variant == "sdpa":
        query, key, value = (tensor.transpose(0, 1)[None] for tensor in (x.query, x.key, x.value))
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=x.scale, enable_gqa=True)
        return output[0]
    if variant == "eager_full":
        return _eager_full(x)
    backend = cast("Backend", variant)
    return attention_divergence(x.query, x.key, x.rows, x.target, scale=x.scale, backend=backend)


def forward_backward(variant: Variant, x: Inputs, after_term: Callable[[], None] | None = None) -> None:
    """Forward, and gradients of everything that the variant reads.

    `after_term` is called when a backend that is one autograd node has returned its gradients, before autograd spreads
    those of the rows' queries over all T positions.
    """
    output = forward(variant, x)
    if variant == "sdpa":
        torch.autograd.grad(output, (x.query, x.key, x.value), x.output_gradient)
        return
    if after_term is not None and variant in ("chunked", "triton"):
        assert output.grad_fn is not None
        output.grad_fn.register_hook(lambda *_: cast("Callable[[], None]", after_term)())
    torch.autograd.grad(output.sum(), (x.query, x.key))


def eager_bytes(plan: Plan, tokens: int) -> int:
    """Estimate the memory of `eager_full`: four float32 tensors [H, T, T] in its backward pass."""
    return 4 * 4 * plan.query_heads * tokens**2


def _eager_full(x: Inputs) -> Tensor:
    """The term from attention probabilities as models return them: every head, every position."""
    key_THD = x.key.repeat_interleave(x.query.shape[1] // x.key.shape[1], dim=1)
    logits_HTS = torch.einsum("thd,shd->hts", x.query * x.scale, key_THD)
    positions = torch.arange(len(key_THD), device=x.rows.device)
    alpha_HTS = logits_HTS.masked_fill(positions > positions[:, None], float("-inf")).softmax(-1, dtype=torch.float32)
    del logits_HTS
    kept_RS = alpha_HTS[:, x.rows].mean(0).masked_fill(positions == x.rows[:, None], 0.0)
    return divergence(kept_RS / kept_RS.sum(-1, keepdim=True).clamp(min=1e-30), x.target, "jsd")
