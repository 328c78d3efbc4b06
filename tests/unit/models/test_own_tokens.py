"""Values of the head's own tokens, put in the order of the response tokens, wherever ranks' runs of tokens end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ral_system.algorithms.token_read import TokenValues
from ral_system.attention.packing import PackedGroup, Packing
from ral_system.attention.sequence import SequenceGroup
from ral_system.models.own_tokens import OwnTokens


@dataclass(frozen=True)
class OneOf(SequenceGroup):
    """A rank of a group whose ranks all have `whole` to tell, each some rows of it."""

    rows: tuple[Tensor, ...] = ()
    """int64, of each rank."""
    whole: Tensor | None = None

    def exchange(self, x: Tensor, received: Sequence[int], sent: Sequence[int]) -> Tensor:
        assert self.whole is not None
        assert torch.equal(x, self.whole[self.rows[self.rank]].repeat(self.size, 1))
        assert list(received) == list(map(len, self.rows)) and set(sent) == {len(self.rows[self.rank])}
        return torch.cat([self.whole[rows] for rows in self.rows])

    def total(self, x: Tensor) -> Tensor:
        raise AssertionError("not asked for")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("prompt", range(1, 14))
def test_values_of_all_ranks_come_back_in_order(size: int, prompt: int) -> None:
    packing = Packing((PackedGroup(prompt, (3, 1, 4)), PackedGroup(2, (1,)), PackedGroup(5, (2, 2))))
    values_NC = torch.randn(len(packing.predicting), 6)
    values_NC[:, 2] = (values_NC[:, 2] > 0).float()
    chosen = [OwnTokens(packing, OneOf(rank, size)).chosen for rank in range(size)]
    assert torch.equal(torch.stack(chosen).sum(0), torch.ones(len(values_NC), dtype=torch.int64))
    rows = tuple(mask.nonzero()[:, 0] for mask in chosen)
    for rank in range(size):
        own = OwnTokens(packing, OneOf(rank, size, rows, values_NC))
        first = OneOf(rank, size).own(packing.tokens).start
        assert torch.equal(own.predicting + first, packing.predicting[chosen[rank]])
        log_probs, entropy, top1, divergence, kept = values_NC[chosen[rank]].split([1, 1, 1, 1, 2], dim=1)
        mine = TokenValues(log_probs[:, 0], entropy[:, 0], top1[:, 0] > 0, {"teacher": kept}, divergence[:, 0])
        found = own.gather(mine)
        assert torch.equal(found.log_probs, values_NC[:, 0]) and torch.equal(found.entropy, values_NC[:, 1])
        assert torch.equal(found.top1, values_NC[:, 2] > 0)
        assert found.divergence is not None and torch.equal(found.divergence, values_NC[:, 3])
        assert torch.equal(found.kept["teacher"], values_NC[:, 4:])
