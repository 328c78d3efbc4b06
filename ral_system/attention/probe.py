"""Reads some layers' query and key beside the fast attention kernel, without changing what the model computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ral_system.attention.group import LayerAttention
from ral_system.attention.intervention import HeadGroups, Steering, steered
from ral_system.attention.kernels import packed_attention, segment_attention, whole_attention
from ral_system.attention.packing import Packing
from ral_system.attention.policy import check_rows
from ral_system.attention.selection import select_layers
from ral_system.attention.sequence import SequenceGroup
from ral_system.config.choices import Layers

IMPLEMENTATION = "probed_sdpa"
"""Load models with `attn_implementation=IMPLEMENTATION` to make them probeable."""

VISION_IMPLEMENTATION = "segmented_flash"
"""For vision encoders: transformers passes all segments in one call to what is called flash, one by one to others."""

_ATTRIBUTE = "_attention_captures"


def _probed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    steering: Steering | None = None,
    sequence: SequenceGroup | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """sdpa; with `packing` (a keyword of the model's forward), the attention of groups that are packed into one stream.

    A vision encoder, which separates its pictures itself, is left alone. With `steering` (another), steered at its
    layers; probes see the unsteered layer. With `sequence` (another) query, key and value are of this rank's tokens;
    probes see its heads.
    """
    if sequence is not None and packing is not None:
        query, key, value = sequence.to_heads(query, key, value, packing.tokens)
    captures: tuple[Capture, ...] = getattr(module, _ATTRIBUTE, ())
    for capture in captures:
        query = capture.take(query, key, float(kwargs["scaling"]), kwargs.get("sliding_window"))
    if not getattr(module, "is_causal", True):
        if attention_mask is None and not kwargs.get("dropout"):
            return whole_attention(query, key, value, kwargs["scaling"]), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if steering is not None and not steering.acts_on(cast(int, module.layer_idx)):
        steering = None
    dim = query.shape[-1]
    if steering is not None:
        query, key, value = steered(query, key, value, steering, kwargs["scaling"])
    if packing is None:
        groups = HeadGroups(getattr(module, "is_causal", True), query.shape[1] // key.shape[1])
        found = sdpa_attention_forward(cast(Any, groups), query, key, value, attention_mask, **kwargs)[0]
    elif not _is_no_mask(attention_mask) or kwargs.get("dropout"):
        raise ValueError("packed sequences take no attention mask and no dropout")
    else:
        found = packed_attention(query, key, value, packing, kwargs["scaling"], kwargs.get("sliding_window"))
        found = found if sequence is None else sequence.to_tokens(found)
    return found[..., :dim], None


def no_mask() -> Tensor:
    """The `attention_mask` for a model's forward with `packing`: [0, 0, 0, 0], which transformers passes on unchanged.

    Without it, transformers makes a mask of [T, T] itself where positions of one axis begin again and again.
    """
    return torch.empty(0, 0, 0, 0)


def _is_no_mask(mask: Tensor | None) -> bool:
    return mask is None or mask.numel() == 0


def _segmented(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a vision encoder, which tells its windows and pictures apart by cumulative lengths."""
    return segment_attention(query, key, value, cu_seq_lens_q, max_length_q, scaling), None


AttentionInterface.register(IMPLEMENTATION, _probed_sdpa)
AttentionInterface.register(VISION_IMPLEMENTATION, _segmented)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


class _SelectRows(torch.autograd.Function):
    """(query [1, H, T, D] as it is, its rows [N, H, D]). Their gradient is added to the query's own where that arrives.

    Indexing instead would keep a gradient of all T positions, almost all of it zeros, until backward gets here.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.rows, ctx.shape = rows, query.shape
        return query.view_as(query), query[0, :, rows].transpose(0, 1).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, row_gradient: Tensor | None) -> tuple[Tensor | None, None]:
        if row_gradient is None:
            return gradient, None
        if gradient is None:
            gradient = row_gradient.new_zeros(ctx.shape)
        return gradient.index_add(2, ctx.rows, row_gradient.transpose(0, 1)[None]), None


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Which rows to capture of groups that are packed into one stream, in their order."""

    lengths: tuple[int, ...]
    """Tokens of each group."""
    positions: tuple[Tensor, ...]
    """int64 [N] of each group, positions in it."""

    def packed(self) -> Tensor:
        """Their positions in the stream: int64 [N]. Raises ValueError for a row outside of its group."""
        for i, (length, at) in enumerate(zip(self.lengths, self.positions, strict=True)):
            check_rows(at, length, f"group {i}")
        starts = accumulate(self.lengths[:-1], initial=0)
        return torch.cat([start + at for start, at in zip(starts, self.positions, strict=True)])


class Capture:
    """Query and key of one layer in a forward pass, after rotary embedding."""

    def __init__(self, rows: PackedRows | None, whole: bool) -> None:
        self._rows, self._whole = rows, whole
        self._at = None if rows is None else rows.packed()
        self.query: Tensor | None = None
        """[B, H, T, D], if it was captured whole."""
        self.row_query: Tensor | None = None
        """[N, H, D] of the rows, if there are any to capture."""
        self.key: Tensor | None = None
        """[B, K, T, D]"""
        self.scale = 1.0
        self.window: int | None = None
        """How many tokens back a row sees, itself included; None: all."""

    def take(self, query: Tensor, key: Tensor, scale: float, window: int | None = None) -> Tensor:
        """Note them; returns the query that the layer shall go on with.

        Only the first pass counts: a checkpointed layer is computed once more in a backward pass. Raises ValueError for
        rows of a batch that is not packed into one.
        """
        if self.key is not None:
            return query
        self.key, self.scale, self.window = key, scale, window
        if self._whole:
            self.query = query
        if self._rows is not None and self._at is not None:
            if len(query) != 1 or query.shape[2] != sum(self._rows.lengths):
                raise ValueError(
                    f"rows are of groups of {self._rows.lengths} tokens packed into one, but query is "
                    f"[B, H, T, D] = {tuple(query.shape)}"
                )
            query, self.row_query = _SelectRows.apply(query, self._at.to(query.device))  # layers may lie on several
        return query

    def groups(self, device: torch.device | None = None) -> list[LayerAttention]:
        """Return what was captured of each packed group, on `device` if it is given, else on the layer's own."""
        assert self.key is not None and self.row_query is not None and self._rows, "the probed layer did not run"
        device = device or self.key.device
        queries = self.row_query.to(device).split([len(at) for at in self._rows.positions])
        keys = self.key[0].to(device).transpose(0, 1).split(self._rows.lengths)
        return [LayerAttention(query, key, self.scale, self.window) for query, key in zip(queries, keys, strict=True)]


class AttentionProbe:
    """A probe on some of a model's text layers.

    `attention` holds the layers' attention modules by depth, None for linear attention (`Family.attention_layers`).
    `layers` is as in `select_layers`. Raises ValueError as that does, and for layers that run another attention than
    `IMPLEMENTATION`.
    """

    def __init__(self, attention: Sequence[nn.Module | None], layers: Layers | Sequence[int] = "last") -> None:
        softmax = [i for i, layer in enumerate(attention) if layer is not None]
        chosen = select_layers(layers, softmax, len(attention))  # the deepest last: its rows are measured
        self._layers = [cast(nn.Module, attention[i]) for i in chosen]
        for layer in self._layers:
            implementation = cast(Any, layer).config._attn_implementation
            if implementation != IMPLEMENTATION:
                raise ValueError(f"the model runs attention {implementation!r}; load it with {IMPLEMENTATION!r}")

    @contextmanager
    def capture(self, rows: PackedRows | None = None, *, whole: bool = False) -> Iterator[list[Capture]]:
        """Capture the forward pass inside the block, one `Capture` per probed layer; blocks may be nested.

        Of `rows` the query is kept, of all tokens only if `whole`: unless the layer keeps it anyway, that is memory.
        """
        captures = [Capture(rows, whole) for _ in self._layers]
        outer = [getattr(layer, _ATTRIBUTE, ()) for layer in self._layers]
        for layer, others, capture in zip(self._layers, outer, captures, strict=True):
            setattr(layer, _ATTRIBUTE, (*others, capture))
        try:
            yield captures
        finally:
            for layer, others in zip(self._layers, outer, strict=True):
                setattr(layer, _ATTRIBUTE, others)
