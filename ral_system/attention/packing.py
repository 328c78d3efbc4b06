"""Groups of sequences in one stream of tokens: a prompt once, then its responses one after another.

A response sees the prompt and itself, as if it alone followed it, and nothing of other responses or groups. What a
prompt's tokens compute does not depend on responses, so log-probs, attention rows and gradients are those of sequences
apart. Suffixes: T tokens of the stream, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedGroup:
    """One prompt and its responses, by their lengths. A sequence alone is a group of one.

    Example: a prompt of 300 tokens with three responses, `PackedGroup(prompt=300, responses=(9, 12, 10))`
    """

    prompt: int
    responses: tuple[int, ...]
    pictures: tuple[tuple[int, int], ...] = ()
    """First and end of each run of prompt tokens that attend to each other in both directions."""

    @property
    def tokens(self) -> int:
        """Tokens of the group in the stream."""
        return self.prompt + sum(self.responses)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt + max(self.responses)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each response begins in the group."""
        return tuple(accumulate(self.responses[:-1], initial=self.prompt))

    @cached_property
    def branches(self) -> Tensor | None:
        """int64 [T]: 0 for the prompt, 1 for the first response, 2 for the next one. None for a sequence alone."""
        if len(self.responses) == 1:
            return None
        lengths = torch.tensor((self.prompt, *self.responses))
        return torch.arange(len(lengths)).repeat_interleave(lengths)

    @cached_property
    def positions(self) -> Tensor:
        """int64 [T]: each token's position in its own sequence."""
        return torch.cat([torch.arange(self.prompt), *(torch.arange(n) + self.prompt for n in self.responses)])

    @cached_property
    def picture_of(self) -> Tensor:
        """int64 [T]: for a token of `pictures` the number of its run, from 1 on; 0 for the others."""
        found = torch.zeros(self.tokens, dtype=torch.int64)
        for number, (first, end) in enumerate(self.pictures, start=1):
            found[first:end] = number
        return found

    def rows(self, response: int, positions: Tensor) -> Tensor:
        """Map positions in the sequence of one response to rows of the group: int64 [N]."""
        shift = self.starts[response] - self.prompt
        return positions if shift == 0 else torch.where(positions < self.prompt, positions, positions + shift)

    def own(self, response: int, values: Tensor) -> Tensor:
        """Select the values of one response's sequence out of those by token of the group, [..., T]."""
        start, length = self.starts[response], self.responses[response]
        if start == self.prompt:  # the first: it follows the prompt already
            return values[..., : self.prompt + length]
        return torch.cat([values[..., : self.prompt], values[..., start : start + length]], dim=-1)


@dataclass(frozen=True)
class Packing:
    """The groups of one stream, in order."""

    groups: tuple[PackedGroup, ...]

    @classmethod
    def apart(cls, lengths: Sequence[int]) -> Packing:
        """Sequences of these lengths that share nothing."""
        return cls(tuple(PackedGroup(0, (length,)) for length in lengths))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each group."""
        return tuple(group.tokens for group in self.groups)

    @property
    def tokens(self) -> int:
        """Tokens of the stream."""
        return sum(self.lengths)

    @property
    def unshared_tokens(self) -> int:
        """Tokens of all sequences apart, each with its prompt."""
        return sum(group.prompt * len(group.responses) + sum(group.responses) for group in self.groups)

    @cached_property
    def predicting(self) -> Tensor:
        """int64 [N]: for every response token, in order, the token of the stream whose output predicts it.

        The prompt's last token predicts the first one of each response.
        """
        found, at = [], 0
        for group in self.groups:
            for start, length in zip(group.starts, group.responses, strict=True):
                rows = torch.arange(start - 1, start + length - 1)
                rows[:1] = group.prompt - 1
                found.append(rows + at)
            at += group.tokens
        return torch.cat(found)

    @cached_property
    def responding(self) -> Tensor:
        """int64 [N]: the token of the stream that every response token is, in order."""
        of_groups = [torch.arange(g.prompt, g.tokens) + at for g, at in zip(self.groups, self.starts, strict=True)]
        return torch.cat(of_groups)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each group begins in the stream."""
        return tuple(accumulate(self.lengths[:-1], initial=0))

    @cached_property
    def runs(self) -> tuple[tuple[PackedGroup, int], ...]:
        """Neighbouring groups of the same shape, with their number."""
        return tuple((group, len(list(run))) for group, run in groupby(self.groups))
