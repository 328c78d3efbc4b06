"""Sequence parallelism (DeepSpeed-Ulysses, arXiv 2309.14509): neighbouring ranks hold one micro-batch together.

Outside of attention a rank has a run of the stream's tokens with all heads, and inside a run of the heads with all
tokens; an all-to-all turns one into the other. Values that belong to no single token, such as the loss, are computed
identically on every rank. The gradient is that of the sum of all ranks' losses, so each takes an N-th of the loss.

Suffixes: N ranks, T tokens of the stream, t of this rank, H query heads, K key heads, D head dimension, R rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import lcm

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class SequenceGroup(ABC):
    """This rank's place among those that share a micro-batch, and how values travel between them, differentiably.

    All ranks of the group call each method together.
    """

    rank: int
    size: int

    @abstractmethod
    def exchange(self, x: Tensor, received: Sequence[int], sent: Sequence[int]) -> Tensor:
        """Send `sent[n]` rows of `x` to rank n, one rank after another; returns `received[n]` of each, in order."""

    @abstractmethod
    def total(self, x: Tensor) -> Tensor:
        """Sum over ranks."""

    def lengths(self, count: int) -> list[int]:
        """Divide `count` tokens, or heads, among the ranks; their numbers differ by one at most."""
        ends = [count * n // self.size for n in range(self.size + 1)]
        return [end - start for start, end in pairwise(ends)]

    def own(self, count: int) -> slice:
        """The run of `count` tokens, or heads, that this rank has."""
        return own_run(self.lengths(count), self.rank)

    def gather(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """All ranks' rows, `lengths` of each, in their order."""
        copies = x.expand(self.size, *x.shape).flatten(0, 1)
        return self.exchange(copies, lengths, [len(x)] * self.size)

    def gather_heads(self, x: Tensor) -> Tensor:
        """All heads' rows, from this rank's."""
        return self.gather(x, [len(x)] * self.size)

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """[1, H, t, D] and [1, K, t, D] of own tokens to [1, H / N, T, D] and [1, K / N, T, D] of own heads.

        Key heads that several ranks need are copied. N divides H.
        """
        copies = lcm(key.shape[1], self.size) // key.shape[1]
        if copies > 1:
            key, value = (t.repeat_interleave(copies, dim=1) for t in (key, value))
        heads = [t.shape[1] // self.size for t in (query, key, value)]
        by_rank = torch.cat([t[0].unflatten(0, (self.size, -1)) for t in (query, key, value)], dim=1)
        sent = [query.shape[2]] * self.size
        found = self.exchange(by_rank.transpose(1, 2).flatten(0, 1), self.lengths(tokens), sent)
        q, k, v = (t.transpose(0, 1)[None] for t in found.split(heads, dim=1))
        return q, k, v

    def to_tokens(self, attended: Tensor) -> Tensor:
        """[1, T, H / N, D] of own heads to [1, t, H, D] of own tokens."""
        lengths = self.lengths(attended.shape[1])
        own = lengths[self.rank]
        found = self.exchange(attended[0], [own] * self.size, lengths)
        return found.unflatten(0, (self.size, own)).transpose(0, 1).flatten(1, 2)[None]


@dataclass(frozen=True)
class SequenceRanks(SequenceGroup):
    """Ranks of torch.distributed."""

    group: dist.ProcessGroup

    def exchange(self, x: Tensor, received: Sequence[int], sent: Sequence[int]) -> Tensor:
        """An all-to-all."""
        from torch.distributed.nn.functional import all_to_all_single

        found = x.new_empty((sum(received), *x.shape[1:]))
        return all_to_all_single(found, x.contiguous(), list(received), list(sent), group=self.group)

    def total(self, x: Tensor) -> Tensor:
        """An all-reduce."""
        from torch.distributed.nn.functional import all_reduce

        return all_reduce(x, group=self.group)


def own_run(lengths: Sequence[int], rank: int) -> slice:
    """Return the place of a rank's run among runs of these lengths."""
    start, end = list(accumulate(lengths, initial=0))[rank : rank + 2]
    return slice(start, end)


def total(x: Tensor, sequence: SequenceGroup | None) -> Tensor:
    """Sum over the ranks of a group; of one rank alone `x` itself."""
    return x if sequence is None else sequence.total(x)


def softmax_over_heads(logits_HR: Tensor, sequence: SequenceGroup | None) -> Tensor:
    """Softmax over all heads; these are this rank's."""
    if sequence is None:
        return logits_HR.softmax(0)
    whole_HR = sequence.gather_heads(logits_HR)
    return whole_HR.softmax(0)[sequence.own(len(whole_HR))]
