"""The behaviour record: a frozen policy's attention rows as a value that crosses processes, whole or compressed.

Suffixes: R rows, T keys, B bins. With heads="each" a head axis leads everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ral_system.algorithms.divergence_sum import divergence
from ral_system.attention.packing import PackedGroup
from ral_system.types import AttentionRecord


def record_attention(
    blocks: Iterable[Tensor], *, version: int, tokens: int, top_k: int | None, dtype: torch.dtype
) -> AttentionRecord:
    """Blocks of policies [R, T], at least one, as one record of weight version `version`.

    `top_k` keeps each row's K largest entries and the mass of the rest; None keeps all T. Entries are stored in `dtype`
    (float32 or bfloat16), the mass of the rest in float32. Raises ValueError that names the argument.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None to keep every entry, got {top_k}")
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    values, indices, tails = [], [], []
    for policy_RT in blocks:
        if policy_RT.ndim not in (2, 3) or policy_RT.shape[-1] != tokens:
            raise ValueError(
                f"blocks must be [R, T] or [H, R, T] with T = {tokens} tokens, got {tuple(policy_RT.shape)}"
            )
        kept_RK = policy_RT
        if top_k is not None:
            kept_RK, indices_RK = policy_RT.topk(min(top_k, tokens), dim=-1)
            indices.append(indices_RK.int().cpu())
            tails.append(_tail(policy_RT, indices_RK).float().cpu())
        values.append(kept_RK.to(dtype).cpu())
    if not values:
        raise ValueError("blocks holds no policy; a sequence without rows has one of no rows")
    return AttentionRecord(
        version=version,
        tokens=tokens,
        values=_to_numpy(torch.cat(values, dim=-2)),
        indices=None if top_k is None else torch.cat(indices, dim=-2).numpy(),
        tail=None if top_k is None else torch.cat(tails, dim=-1).numpy(),
    )


def join_records(records: Sequence[AttentionRecord], group: PackedGroup) -> AttentionRecord:
    """One record of a group's rows over its T tokens, out of a record for each response over its own sequence.

    Nothing is on other responses' tokens, where a group's policies are 0 as well, so divergences stay what they are.
    Where a row of a top-k record has fewer keys than others, such tokens fill it up.
    """
    if len(records) == 1:
        return records[0]
    first, compressed = records[0], records[0].indices is not None
    rows, width = sum(r.values.shape[-2] for r in records), max(r.values.shape[-1] for r in records)
    shape = (*first.values.shape[:-2], rows, width if compressed else group.tokens)
    values = np.zeros(shape, first.values.dtype)
    indices = np.full(shape, group.starts[int(np.argmax(group.responses))], np.int32) if compressed else None
    at = 0
    for record, start in zip(records, group.starts, strict=True):
        of_rows, own = slice(at, at + record.values.shape[-2]), record.values.shape[-1]
        at = of_rows.stop
        if indices is not None and record.indices is not None:
            values[..., of_rows, :own] = record.values
            moved = record.indices + (start - group.prompt)
            indices[..., of_rows, :own] = np.where(record.indices < group.prompt, record.indices, moved)
            continue
        values[..., of_rows, : group.prompt] = record.values[..., : group.prompt]
        values[..., of_rows, start : start + own - group.prompt] = record.values[..., group.prompt :]
    tail = np.concatenate([r.tail for r in records if r.tail is not None], axis=-1) if compressed else None
    return AttentionRecord(first.version, group.tokens, values, indices, tail)


def record_of_heads(record: AttentionRecord, heads: slice) -> AttentionRecord:
    """Select some heads of a record that has them."""
    values, indices, tail = (None if of is None else of[heads] for of in (record.values, record.indices, record.tail))
    assert values is not None
    return replace(record, values=values, indices=indices, tail=tail)


def sharpened(record: AttentionRecord, power: float) -> AttentionRecord:
    """Raise a whole record's rows to a power above 0 and normalise them, in float32: sharper ones above 1, flatter ones
    below. A row without mass stays so. Raises ValueError for a top-k record, which lacks the entries of its tail.
    """
    if record.indices is not None:
        raise ValueError(f"record of {record.values.shape[-1]} entries per row: only whole rows can be sharpened")
    values = record.values
    if values.dtype == np.uint16:  # bfloat16 is the upper half of float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    raised = values.astype(np.float64) ** power
    total = raised.sum(-1, keepdims=True)
    rows = np.divide(raised, total, out=np.zeros_like(raised), where=total > 0)
    return replace(record, values=rows.astype(np.float32))


class Target:
    """Target that policies are compared with: a constant policy, or a record. On the policies' device.

    Against a top-k record both sides are merged into K + 1 bins, so an f-divergence is a lower bound of the true one
    (data processing). Against any record the policy is first rounded as the record was, with the gradient passed
    through: at the recorded weights the divergence is exactly 0 whatever the record's precision. Bfloat16 adds its own
    noise, about 6e-7 nats to a JSD, and then a bound holds up to that.
    """

    def __init__(self, target: Tensor | AttentionRecord, device: torch.device) -> None:
        self._indices: Tensor | None = None
        self._tail: Tensor | None = None
        if isinstance(target, AttentionRecord):
            self._values = _to_torch(target.values).to(device)
            self._rounded_to: torch.dtype | None = self._values.dtype
            if target.indices is not None and target.tail is not None:
                self._indices = torch.tensor(target.indices, device=device).long()
                self._tail = torch.tensor(target.tail, device=device)
        else:
            self._values, self._rounded_to = target, None

    def divergence(self, policy: Tensor, rows: slice, kind: str) -> Tensor:
        """D(p, target) of policies [R, T] to the target's rows `rows`; [R], in policy's precision, differentiable."""
        q, p = self._values[..., rows, :].to(policy.dtype), policy
        if self._indices is not None and self._tail is not None:
            indices = self._indices[..., rows, :]
            p = torch.cat([self._round(policy.gather(-1, indices)), _tail(policy, indices)[..., None]], dim=-1)
            q = torch.cat([q, self._tail[..., rows].to(policy.dtype)[..., None]], dim=-1)
        else:
            p = self._round(p)
        some_R = policy.detach().sum(-1) != 0  # a row without a key that counts has nothing to be moved
        return torch.where(some_R, divergence(p, q, kind), 0.0)

    def _round(self, p: Tensor) -> Tensor:
        if self._rounded_to is None or self._rounded_to == p.dtype:
            return p
        return _Round.apply(p, self._rounded_to)


def check_record(record: AttentionRecord, shape: tuple[int, ...], axes: str) -> None:
    """Raise ValueError unless the record holds policies of this shape, [R, T] or [H, R, T]."""
    of_rows, tokens = shape[:-1], shape[-1]
    if record.tokens != tokens:
        raise ValueError(f"target is a record over {record.tokens} keys, but query has {tokens} tokens")
    indices, tail = record.indices, record.tail
    expected = (*of_rows, tokens if indices is None else indices.shape[-1])
    if record.values.shape != expected or (indices is not None and indices.shape != expected):
        raise ValueError(f"target is a record of {record.values.shape}, but rows ask for {axes} = {shape}")
    if (indices is None) != (tail is None) or (tail is not None and tail.shape != of_rows):
        found = None if tail is None else tail.shape
        raise ValueError(f"target is a record of {record.values.shape} whose tail is {found}, not {of_rows}")
    if indices is not None and indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < tokens:
        raise ValueError(f"target is a record of keys {indices.min()}..{indices.max()}, but query has {tokens} tokens")
    values = _to_torch(record.values)
    check_probabilities(values)
    if indices is not None and tail is not None:
        ordered = np.sort(indices, axis=-1)
        if (ordered[..., 1:] == ordered[..., :-1]).any():
            raise ValueError(f"target is a record of {indices.shape} keys, some of them twice in a row")
        check_probabilities(torch.cat([values.float(), torch.from_numpy(tail)[..., None]], dim=-1))


def check_probabilities(values: Tensor) -> None:
    """Raise ValueError unless the last axis holds probabilities that add up to at most 1.

    Of a top-k record the last one may be the mass of the rest.
    """
    if not values.numel():
        return
    if not (float(values.min()) >= 0 and float(values.max()) < float("inf")):
        at = (~((values >= 0) & (values < float("inf")))).nonzero()[0].tolist()
        raise ValueError(
            f"target must be probabilities ≥ 0, got {values[tuple(at)].item()} at {at} of {tuple(values.shape)}"
        )
    largest = float(values.sum(-1, dtype=torch.float32).max())
    if largest > 1.02:
        raise ValueError(f"target must be probabilities, but a row of {tuple(values.shape)} adds up to {largest:.3g}")


class _Round(torch.autograd.Function):
    """Round to a lower precision; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, dtype: torch.dtype) -> Tensor:
        return p.to(dtype).to(p.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _tail(policy_RT: Tensor, kept_RK: Tensor) -> Tensor:
    """The mass on other keys, summed rather than subtracted from 1: a small one keeps its precision."""
    return policy_RT.scatter(-1, kept_RK, 0.0).sum(-1)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    """numpy has no bfloat16: its bits travel as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _to_torch(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
