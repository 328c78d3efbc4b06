"""Divergences and policies of heads that lie on several ranks, here threads that take turns, by each backend."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ral_system.attention.divergence import row_divergence, row_policy_blocks
from ral_system.attention.sequence import SequenceGroup
from ral_system.config.choices import Backend, Heads

HEADS, KEY_HEADS, TOKENS, DIM = 4, 2, 70, 16


class Meeting:
    """Where the threads meet. One at a time computes: Triton's interpreter is one for all."""

    def __init__(self, size: int) -> None:
        self.turn, self.barrier, self.told = threading.Lock(), threading.Barrier(size), [[Tensor()]] * size

    def all_here(self) -> None:
        self.turn.release()
        self.barrier.wait(timeout=60)
        self.turn.acquire()


@dataclass(frozen=True)
class Threads(SequenceGroup):
    """A rank that is a thread."""

    meeting: Meeting

    def exchange(self, x: Tensor, received: Sequence[int], sent: Sequence[int]) -> Tensor:
        self.meeting.told[self.rank] = list(x.detach().split(list(sent)))
        self.meeting.all_here()
        found = torch.cat([parts[self.rank] for parts in self.meeting.told])
        self.meeting.all_here()
        assert len(found) == sum(received)
        return found

    def total(self, x: Tensor) -> Tensor:
        return self.gather(x[None], [1] * self.size).sum(0)


def outcome(sequence: SequenceGroup | None, backend: Backend, heads: Heads, *, masked: bool) -> list[Tensor]:
    """Policies, divergences, and their gradient by the queries and keys of this rank's heads."""
    torch.manual_seed(0)
    query, key = torch.randn(TOKENS, HEADS, DIM), torch.randn(TOKENS, KEY_HEADS, DIM)
    rows = torch.tensor([3, 40, 41, 69])
    target = torch.rand(HEADS, 4, TOKENS).softmax(-1)
    mask = torch.arange(TOKENS) % 3 > 0 if masked else None
    weights = torch.randn(4)
    target = target if heads == "each" else target.mean(0)
    if sequence is not None:
        query, key = query[:, sequence.own(HEADS)], key[:, sequence.own(KEY_HEADS)]
        target = target[sequence.own(HEADS)] if heads == "each" else target
    query, key = query.contiguous().requires_grad_(), key.contiguous().requires_grad_()
    settings = {"scale": 0.3, "branches": None, "key_mask": mask, "heads": heads, "backend": backend}
    blocks = row_policy_blocks(query[rows], key, rows, **settings, sequence=sequence)  # type: ignore[arg-type]
    policies = torch.cat(list(blocks), dim=-2)
    found = row_divergence(query[rows], key, rows, target, kind="jsd", **settings, sequence=sequence)  # type: ignore[arg-type]
    (found * weights).sum().div(1 if sequence is None else sequence.size).backward()
    assert query.grad is not None and key.grad is not None
    return [policies, found.detach(), query.grad, key.grad]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", ["mean", "each"])
@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_ranks_find_what_one_does(backend: Backend, heads: Heads, masked: bool) -> None:
    meeting = Meeting(2)

    def of_rank(rank: int) -> list[Tensor]:
        with meeting.turn:
            return outcome(Threads(rank, 2, meeting), backend, heads, masked=masked)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(of_rank, range(2))
    policies, divergences, query_gradient, key_gradient = outcome(None, backend, heads, masked=masked)
    for found in (first, second):
        assert torch.allclose(found[0], policies, atol=1e-6) and torch.allclose(found[1], divergences, atol=1e-6)
    for at, expected in ((2, query_gradient), (3, key_gradient)):
        together = torch.cat([first[at], second[at]], dim=1)
        assert expected.abs().max() > 1e-3 and torch.allclose(together, expected, atol=1e-6)
