"""How much the rows of each response look at some keys together, without writing their policies out for every head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ral_system.attention.policy import dense_policy
from ral_system.attention.row_kernels import Kernels, blocks, open_kernels
from ral_system.attention.sequence import SequenceGroup, total
from ral_system.attention.window import Window
from ral_system.config.choices import Backend, Heads
from ral_system.device_kind import device_kind


def glance_sums(
    query_RHD: Tensor,
    key: Tensor,
    rows: Tensor,
    belongs_GR: Tensor,
    keys_N: Tensor,
    *,
    scale: float,
    branches: Tensor | None,
    heads: Heads,
    backend: Backend,
    sequence: SequenceGroup | None = None,
    window: Window | None = None,
) -> Tensor:
    """Sum_r belongs[g, r] · p_r(k): [G, N], or [H, G, N] with heads="each"; differentiable in query and key.

    p_r is the policy of a row over all keys that it sees (`attention_policy`), `belongs` 1 where a row is of response
    g, else 0, and `keys` int64 [N] are the keys k. Query and key have this rank's heads of `sequence`; the sums have
    those of all ranks.
    """
    masks: dict[str, Any] = {"branches": branches, "key_mask": None, "window": window}
    options: dict[str, Any] = {**masks, "heads": heads, "sequence": sequence}
    if backend == "dense":
        with torch.autocast(device_kind(key.device), enabled=False):
            policy = dense_policy(query_RHD, key, rows, scale, **options)
        found = belongs_GR.to(policy.dtype) @ policy[..., keys_N]
    else:
        kernels = open_kernels(backend, key.detach(), scale=scale, **options)
        found = _GlanceSums.apply(query_RHD, key, rows, belongs_GR, keys_N, kernels, sequence)
    return found if sequence is None or heads == "mean" else sequence.gather_heads(found)


class _GlanceSums(torch.autograd.Function):
    """Blocks of rows, one after the other; the backward pass computes each block's policies again."""

    @staticmethod
    def forward(
        ctx: Any,
        query_RHD: Tensor,
        key_TKD: Tensor,
        rows_R: Tensor,
        belongs_GR: Tensor,
        keys_N: Tensor,
        kernels: Kernels,
        sequence: SequenceGroup | None,
    ) -> Tensor:
        belongs_GR = belongs_GR.to(torch.promote_types(query_RHD.dtype, torch.float32))
        ctx.save_for_backward(query_RHD, key_TKD, rows_R, belongs_GR, keys_N)
        ctx.kernels, ctx.sequence = kernels, sequence
        found: Tensor | float = 0.0
        with torch.autocast(device_kind(query_RHD.device), enabled=False):
            for block in blocks(query_RHD, kernels):
                policy, _ = kernels.policy(query_RHD[block], rows_R[block])
                found = found + belongs_GR[:, block] @ policy[..., keys_N]
        assert isinstance(found, Tensor), "a response has rows"
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query_RHD, key_TKD, rows_R, belongs_GR, keys_N = ctx.saved_tensors
        kernels: Kernels = ctx.kernels
        if gradient.ndim == 2:  # every rank has the sums of the mean over all ranks' heads
            gradient = total(gradient, ctx.sequence)
        query_gradient_RHD = torch.zeros_like(query_RHD)
        key_gradient_KTD = torch.zeros_like(key_TKD, dtype=gradient.dtype).transpose(0, 1).contiguous()
        with torch.autocast(device_kind(query_RHD.device), enabled=False):
            for block in blocks(query_RHD, kernels):
                policy, state = kernels.policy(query_RHD[block], rows_R[block])
                slopes = torch.zeros_like(policy)
                slopes[..., keys_N] = belongs_GR[:, block].t() @ gradient
                query_gradient_RHD[block] = kernels.gradient(state, slopes, key_gradient_KTD).to(query_RHD.dtype)
        return query_gradient_RHD, key_gradient_KTD.transpose(0, 1).to(key_TKD.dtype), None, None, None, None, None
