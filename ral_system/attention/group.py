"""The attention rows of a group's responses that a training objective reads, not yet computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ral_system.attention.divergence import row_divergence, row_policy_blocks
from ral_system.attention.glances import glance_sums
from ral_system.attention.kernels import MASKED_TOKENS
from ral_system.attention.packing import PackedGroup
from ral_system.attention.policy import check_rows
from ral_system.attention.record import check_record, join_records
from ral_system.attention.sequence import SequenceGroup
from ral_system.attention.window import Window
from ral_system.config.choices import Backend, Heads
from ral_system.device_kind import device_kind
from ral_system.types import AttentionRecord


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """Query and key for the rows of one group at one layer, after rotary embedding."""

    query: Tensor
    """[N, H, D], of the rows."""
    key: Tensor
    """[T, K, D], of all tokens."""
    scale: float
    window: int | None = None
    """How many tokens back a row sees, itself included; None: all."""


@dataclass(frozen=True, slots=True)
class GroupAttention:
    """Rows of one group at the probed layers, response by response. T tokens of the group, N rows."""

    layers: tuple[LayerAttention, ...]
    group: PackedGroup
    rows: Tensor
    """int64 [N], positions in the group."""
    counts: tuple[int, ...]
    """Number of rows of each response; they sum to N."""
    key_mask: Tensor | None
    """bool [T], keys that count; None: all."""
    heads: Heads
    backend: Backend
    sequence: SequenceGroup | None = None
    """Ranks among which the heads of `layers` are dealt; None: they are all of them."""

    @classmethod
    def alone(
        cls,
        layers: tuple[LayerAttention, ...],
        rows: Tensor,
        key_mask: Tensor | None = None,
        heads: Heads = "mean",
        backend: Backend = "auto",
        sequence: SequenceGroup | None = None,
    ) -> GroupAttention:
        """Rows of one sequence that stands alone."""
        group = PackedGroup(0, (len(layers[0].key),))
        return cls(layers, group, rows, (len(rows),), key_mask, heads, backend, sequence)

    def __post_init__(self) -> None:
        """Raise ValueError for rows that a layer's query and key do not fit."""
        for layer in self.layers:
            check_rows(self.rows, len(layer.key), f"key {tuple(layer.key.shape)}")
            if len(layer.query) != len(self.rows):
                raise ValueError(f"rows {tuple(self.rows.shape)} do not fit query {tuple(layer.query.shape)}")

    @property
    def branches(self) -> Tensor | None:
        """int64 [T] (see `attention_policy`), on the rows' device."""
        branches = self.group.branches
        return None if branches is None else branches.to(self.rows.device)

    def window(self, layer: LayerAttention) -> Window | None:
        """Return how far back the layer's rows see, on their device; None where they see all of their sequences."""
        if layer.window is None or layer.window >= self.group.longest:
            return None
        return Window(layer.window, self.group.positions.to(self.rows.device))

    def all_heads(self, values_LH: Tensor) -> Tensor:
        """Values of every layer and head, from those of this rank's heads."""
        return values_LH if self.sequence is None else self.sequence.gather_heads(values_LH.t()).t()

    def policies(self, layer: int) -> Iterator[Tensor]:
        """Constant policies of one probed layer, in blocks of rows: [·, T], 0 on other responses' tokens.

        They have all ranks' heads.
        """
        at = self.layers[layer]
        return row_policy_blocks(
            at.query,
            at.key,
            self.rows,
            scale=at.scale,
            branches=self.branches,
            key_mask=self.key_mask,
            heads=self.heads,
            backend=self.backend,
            sequence=self.sequence,
            window=self.window(at),
        )

    def by_response(self, blocks: Iterator[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Blocks of `policies`, cut up in order: a response's index, and some of its rows over its own sequence's keys.

        A response without rows has a block of none.
        """
        ends, at = list(pairwise(accumulate(self.counts, initial=0))), 0
        for block in blocks:
            size = block.shape[-2]
            for response, (first, end) in enumerate(ends):
                begin, stop = max(first, at) - at, min(end, at + size) - at
                if begin < stop or (first == end and (at < first <= at + size or at == first == 0)):
                    yield response, self.group.own(response, block[..., begin:stop, :])
            at += size

    @property
    def is_mostly_empty(self) -> bool:
        """Whether rows over all of the group's tokens cost more than copies of the prompt's keys for each response.

        On CPU, in long groups; a GPU does better with few large calls, and its memory is dear.
        """
        if (
            len(self.counts) == 1
            or device_kind(self.layers[0].key.device) == "cuda"
            or self.group.tokens <= MASKED_TOKENS
        ):
            return False
        own = [self.group.prompt + length for length in self.group.responses]
        rows = zip(self.counts, own, strict=True)
        return 4 * len(self.rows) * self.group.tokens > 5 * sum(count * tokens for count, tokens in rows)

    def of(self, chosen: Sequence[bool]) -> GroupAttention:
        """The rows of some responses; the others have none."""
        counts = tuple(count if own else 0 for own, count in zip(chosen, self.counts, strict=True))
        if counts == self.counts:
            return self
        kept = torch.tensor(chosen).repeat_interleave(torch.tensor(self.counts)).nonzero()[:, 0].to(self.rows.device)
        layers = tuple(replace(at, query=at.query[kept]) for at in self.layers)
        return replace(self, layers=layers, rows=self.rows[kept], counts=counts)

    def apart(self) -> Iterator[GroupAttention]:
        """Each response as a group of one, over its own keys."""
        positions = self.group.positions.to(self.rows.device)[self.rows].split(self.counts)
        queries = [at.query.split(self.counts) for at in self.layers]
        for response, rows in enumerate(positions):
            layers = []
            for at, of_layer in zip(self.layers, queries, strict=True):
                key = self.group.own(response, at.key.movedim(0, -1)).movedim(-1, 0)
                layers.append(LayerAttention(of_layer[response], key, at.scale, at.window))
            mask = None if self.key_mask is None else self.group.own(response, self.key_mask)
            yield GroupAttention.alone(tuple(layers), rows, mask, self.heads, self.backend, self.sequence)

    def check(self, response: int, records: Sequence[AttentionRecord], version: int) -> None:
        """Raise ValueError unless there is a record of one response for each probed layer, of weights `version`."""
        rows, tokens = self.counts[response], self.group.prompt + self.group.responses[response]
        for at, record in zip(self.layers, records, strict=True):
            heads = at.query.shape[1] * (1 if self.sequence is None else self.sequence.size)
            shape = (rows, tokens) if self.heads == "mean" else (heads, rows, tokens)
            check_record(record, shape, "[R, T]" if self.heads == "mean" else "[H, R, T]")
            if record.version != version:
                raise ValueError(f"target is a record of weights {record.version}, but version={version}")

    def divergence(self, records: Sequence[Sequence[AttentionRecord]], kind: str) -> Tensor:
        """D(policy, record) of every row, mean over layers: [N], differentiable.

        `records` holds for each response one per probed layer, which fit (`check`).
        """
        if self.is_mostly_empty:
            apart = zip(self.apart(), records, strict=True)
            return torch.cat([one.divergence([of_response], kind) for one, of_response in apart])
        return self._divergence([join_records(of_layer, self.group) for of_layer in zip(*records, strict=True)], kind)

    def divergence_to(self, target: Tensor, kind: str) -> Tensor:
        """D(policy, target) of every row, mean over layers: [N], differentiable. `target` [T] is a policy for all rows,
        with nothing on the responses' tokens.
        """
        if self.is_mostly_empty:
            own = (self.group.own(response, target) for response in range(len(self.counts)))
            return torch.cat([one.divergence_to(t, kind) for one, t in zip(self.apart(), own, strict=True)])
        return self._divergence([target.expand(len(self.rows), -1)] * len(self.layers), kind)

    def _divergence(self, targets: Sequence[Tensor | AttentionRecord], kind: str) -> Tensor:
        """Mean over layers, with a target for each."""
        found = [
            row_divergence(
                at.query,
                at.key,
                self.rows,
                of_layer,
                scale=at.scale,
                kind=kind,
                branches=self.branches,
                key_mask=self.key_mask,
                heads=self.heads,
                backend=self.backend,
                sequence=self.sequence,
                window=self.window(at),
            )
            for at, of_layer in zip(self.layers, targets, strict=True)
        ]
        return torch.stack(found).mean(0)

    def glances(self, keys: Tensor) -> Tensor:
        """Sum how much each response looks at each of `keys`: [L, G, n], or [L, H, G, n] with heads="each".

        Sums over rows of their policies over all keys that they see, whatever `key_mask` says; differentiable. `keys`
        are int64 [n], positions in the prompt.
        """
        if self.is_mostly_empty:
            return torch.cat([one.glances(keys) for one in self.apart()], dim=-2)
        return torch.stack(
            [
                glance_sums(
                    at.query,
                    at.key,
                    self.rows,
                    self.belongs,
                    keys,
                    scale=at.scale,
                    branches=self.branches,
                    heads=self.heads,
                    backend=self.backend,
                    sequence=self.sequence,
                    window=self.window(at),
                )
                for at in self.layers
            ]
        )

    @property
    def belongs(self) -> Tensor:
        """bool [G, N]: which rows are each response's."""
        of_rows = torch.arange(len(self.counts)).repeat_interleave(torch.tensor(self.counts))
        return (of_rows == torch.arange(len(self.counts))[:, None]).to(self.rows.device)
