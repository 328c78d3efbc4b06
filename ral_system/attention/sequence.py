"""The attention rows of one sequence that a training objective reads, not yet computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ral_system.attention.divergence import row_divergence, row_policy_blocks
from ral_system.attention.policy import check_rows
from ral_system.config.choices import Backend, Heads
from ral_system.types import AttentionRecord


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """Query and key for the rows of one sequence at one layer, after rotary embedding."""

    query: Tensor
    """[R, H, D], of the rows."""
    key: Tensor
    """[T, K, D], of all tokens."""
    scale: float


@dataclass(frozen=True, slots=True)
class SequenceAttention:
    """Rows of one sequence at the probed layers. T tokens, R rows."""

    layers: tuple[LayerAttention, ...]
    rows: Tensor
    """int64 [R], positions in the sequence."""
    key_mask: Tensor | None
    """bool [T], keys that count; None: all."""
    heads: Heads
    backend: Backend

    def __post_init__(self) -> None:
        """Raise ValueError for rows that a layer's query and key do not fit."""
        for layer in self.layers:
            check_rows(self.rows, len(layer.key), f"key {tuple(layer.key.shape)}")
            if len(layer.query) != len(self.rows):
                raise ValueError(f"rows {tuple(self.rows.shape)} do not fit query {tuple(layer.query.shape)}")

    def policies(self, layer: int) -> Iterator[Tensor]:
        """Constant policies of one probed layer, in blocks of rows."""
        at = self.layers[layer]
        return row_policy_blocks(
            at.query,
            at.key,
            self.rows,
            scale=at.scale,
            segment_ids=None,
            key_mask=self.key_mask,
            heads=self.heads,
            backend=self.backend,
        )

    def divergence(self, records: Sequence[AttentionRecord], kind: str, version: int | None = None) -> Tensor:
        """D(policy, record) of every row, mean over layers: [R], differentiable.

        One record per probed layer, of weights `version` if that is given (ValueError).
        """
        found = [
            row_divergence(
                at.query,
                at.key,
                self.rows,
                record,
                scale=at.scale,
                kind=kind,
                segment_ids=None,
                key_mask=self.key_mask,
                heads=self.heads,
                backend=self.backend,
                version=version,
            )
            for at, record in zip(self.layers, records, strict=True)
        ]
        return torch.stack(found).mean(0)
