"""How far attention policies are from a target, row by row, without writing them out for every head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ral_system.attention.policy import check_arguments, dense_policy
from ral_system.attention.record import Target, check_probabilities, check_record, record_of_heads
from ral_system.attention.row_kernels import Kernels, blocks, check_backend, open_kernels
from ral_system.attention.sequence import SequenceGroup, total
from ral_system.attention.window import Window
from ral_system.config.choices import Backend, Heads
from ral_system.device_kind import device_kind
from ral_system.registry import DIVERGENCES
from ral_system.types import AttentionRecord


def attention_divergence(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    target: Tensor | AttentionRecord,
    *,
    scale: float,
    kind: str = "jsd",
    branches: Tensor | None = None,
    key_mask: Tensor | None = None,
    heads: Heads = "mean",
    backend: Backend = "auto",
    window: Window | None = None,
    version: int | None = None,
) -> Tensor:
    """D(p_r, target_r) of every row's attention policy p (see `attention_policy`) to its target: [R].

    `target` is a constant policy [R, T] ([H, R, T] with heads="each", where the mean over heads is returned), or a
    record of one (see `record.Target` for what its compression and precision mean), which must be of weights `version`
    if that is given. Differentiable in query and key; at p = target value and gradient are exactly 0, and so they are
    for a row without a key that counts, whatever its target. `kind` is a name in `registry.DIVERGENCES`. Autocast
    does not reach inside.

    Backends: `dense` is the definition, in autograd's own operations, memory H · R · T; `chunked` has the same results
    with memory linear in T; `triton` has them fast, on CUDA devices, up to float32; `auto` is `triton` where that works
    and `chunked` elsewhere. Raises ValueError that names the argument.
    """
    check_arguments(query, key, rows, scale, branches, key_mask, heads, window)
    _check_target(query[rows], key, target, heads)
    if isinstance(target, AttentionRecord) and version is not None and target.version != version:
        raise ValueError(f"target is a record of weights {target.version}, but version={version}")
    return row_divergence(
        query[rows],
        key,
        rows,
        target,
        scale=scale,
        kind=kind,
        branches=branches,
        key_mask=key_mask,
        heads=heads,
        backend=backend,
        window=window,
    )


def row_divergence(
    query_RHD: Tensor,
    key: Tensor,
    rows: Tensor,
    target: Tensor | AttentionRecord,
    *,
    scale: float,
    kind: str,
    branches: Tensor | None,
    key_mask: Tensor | None,
    heads: Heads,
    backend: Backend,
    sequence: SequenceGroup | None = None,
    window: Window | None = None,
) -> Tensor:
    """`attention_divergence` of the rows' own queries; they, `key`, `rows` and `target` must fit.

    Query and key have this rank's heads of `sequence`, `target`, a record, those of all ranks.
    """
    if kind not in DIVERGENCES:
        raise ValueError(f"kind={kind!r}; known: {', '.join(DIVERGENCES.names)}")
    masks: dict[str, Any] = {"branches": branches, "key_mask": key_mask, "window": window}
    options: dict[str, Any] = {**masks, "heads": heads, "sequence": sequence}
    if sequence is not None and heads == "each" and isinstance(target, AttentionRecord):
        target = record_of_heads(target, sequence.own(len(target.values)))
    if backend == "dense":
        with torch.autocast(device_kind(key.device), enabled=False):
            policy = dense_policy(query_RHD, key, rows, scale, **options)
        return _over_heads(Target(target, key.device).divergence(policy, slice(None), kind), sequence)
    kernels = open_kernels(backend, key.detach(), scale=scale, **options)
    return _RowDivergence.apply(query_RHD, key, rows, Target(target, key.device), kernels, kind, sequence)


def policy_blocks(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    *,
    scale: float,
    branches: Tensor | None = None,
    key_mask: Tensor | None = None,
    heads: Heads = "mean",
    backend: Backend = "auto",
    window: Window | None = None,
) -> Iterator[Tensor]:
    """The policies of `rows`, a block of rows at a time, as constants: bit for bit what a divergence compares."""
    check_arguments(query, key, rows, scale, branches, key_mask, heads, window)
    check_backend(backend)
    masks: dict[str, Any] = {"branches": branches, "key_mask": key_mask, "heads": heads, "window": window}
    return row_policy_blocks(query[rows], key, rows, scale=scale, backend=backend, **masks)


@torch.no_grad()
def row_policy_blocks(
    query_RHD: Tensor,
    key: Tensor,
    rows: Tensor,
    *,
    scale: float,
    branches: Tensor | None,
    key_mask: Tensor | None,
    heads: Heads,
    backend: Backend,
    sequence: SequenceGroup | None = None,
    window: Window | None = None,
) -> Iterator[Tensor]:
    """`policy_blocks` of the rows' own queries, which must fit `key` and `rows`.

    Query and key have this rank's heads of `sequence`, the policies those of all ranks.
    """
    masks: dict[str, Any] = {"branches": branches, "key_mask": key_mask, "window": window}
    options: dict[str, Any] = {**masks, "heads": heads, "sequence": sequence}
    if backend == "dense" or not len(rows):
        with torch.autocast(device_kind(key.device), enabled=False):
            policy = dense_policy(query_RHD, key, rows, scale, **options)
        yield _all_heads(policy, sequence)
        return
    kernels = open_kernels(backend, key, scale=scale, **options)
    for block in blocks(query_RHD, kernels):
        with torch.autocast(device_kind(key.device), enabled=False):
            policy, _ = kernels.policy(query_RHD[block], rows[block])
        yield _all_heads(policy, sequence)


class _RowDivergence(torch.autograd.Function):
    """Blocks of rows, one after the other; the backward pass computes each block's policies again."""

    @staticmethod
    def forward(
        ctx: Any,
        query_RHD: Tensor,
        key_TKD: Tensor,
        rows_R: Tensor,
        target: Target,
        kernels: Kernels,
        kind: str,
        sequence: SequenceGroup | None,
    ) -> Tensor:
        ctx.save_for_backward(query_RHD, key_TKD, rows_R)
        ctx.target, ctx.kernels, ctx.kind, ctx.sequence = target, kernels, kind, sequence
        precision = torch.promote_types(query_RHD.dtype, torch.float32)
        found_R = torch.zeros(rows_R.shape, dtype=precision, device=rows_R.device)
        with torch.autocast(device_kind(query_RHD.device), enabled=False):
            for block in blocks(query_RHD, kernels):
                policy, _ = kernels.policy(query_RHD[block], rows_R[block])
                found_R[block] = _over_heads(target.divergence(policy, block, kind), sequence)
        return found_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_R: Tensor) -> tuple[Tensor | None, ...]:
        query_RHD, key_TKD, rows_R = ctx.saved_tensors
        kernels: Kernels = ctx.kernels
        precision, gradient_R = gradient_R.dtype, total(gradient_R, ctx.sequence)
        query_gradient_RHD = torch.zeros_like(query_RHD)
        key_gradient_KTD = torch.zeros_like(key_TKD, dtype=precision).transpose(0, 1).contiguous()
        with torch.autocast(device_kind(query_RHD.device), enabled=False):
            for block in blocks(query_RHD, kernels):
                policy, state = kernels.policy(query_RHD[block], rows_R[block])
                with torch.enable_grad():
                    found_R = _own_mean(ctx.target.divergence(policy.requires_grad_(), block, ctx.kind), ctx.sequence)
                (slopes,) = torch.autograd.grad(found_R, policy, gradient_R[block])
                query_gradient_RHD[block] = kernels.gradient(state, slopes, key_gradient_KTD).to(query_RHD.dtype)
        key_gradient = key_gradient_KTD.transpose(0, 1).to(key_TKD.dtype)
        return query_gradient_RHD, key_gradient, None, None, None, None, None


def _over_heads(found: Tensor, sequence: SequenceGroup | None) -> Tensor:
    """Mean over all heads [R] of this rank's [H, R], or [R] of their mean policy unchanged."""
    return total(_own_mean(found, sequence), sequence) if found.ndim == 2 else found


def _own_mean(found: Tensor, sequence: SequenceGroup | None) -> Tensor:
    """This rank's part of `_over_heads`."""
    if found.ndim == 1:
        return found
    return found.mean(0) if sequence is None else found.mean(0) / sequence.size


def _all_heads(policy: Tensor, sequence: SequenceGroup | None) -> Tensor:
    return policy if sequence is None or policy.ndim == 2 else sequence.gather_heads(policy)


def _check_target(query_RHD: Tensor, key: Tensor, target: Tensor | AttentionRecord, heads: Heads) -> None:
    rows, query_heads, _ = query_RHD.shape
    shape = (rows, len(key)) if heads == "mean" else (query_heads, rows, len(key))
    axes = "[R, T]" if heads == "mean" else "[H, R, T]"
    if isinstance(target, AttentionRecord):
        check_record(target, shape, axes)
        return
    if not isinstance(target, Tensor):
        raise ValueError(f"target must be a Tensor {axes} = {shape} or an AttentionRecord, got {type(target).__name__}")
    if tuple(target.shape) != shape or not target.is_floating_point():
        raise ValueError(f"target must be floating {axes} = {shape}, got {target.dtype} {tuple(target.shape)}")
    if target.device != key.device:
        raise ValueError(f"target {shape} must be on the device of query and key, {key.device}, got {target.device}")
    check_probabilities(target)
