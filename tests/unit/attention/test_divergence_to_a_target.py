"""Divergence of a packed group's rows to one target for all, against policies that are written out, by each backend."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from ral_system.algorithms.divergence_sum import divergence
from ral_system.attention import group as groups
from ral_system.attention.group import GroupAttention, LayerAttention
from ral_system.attention.policy import attention_policy
from ral_system.attention.sequence import SequenceGroup
from ral_system.config.choices import Backend, Heads
from tests.unit.attention.test_glances import COUNTS, GROUP, HEADS, KEY_HEADS, ROWS, tensors
from tests.unit.attention.test_heads_of_ranks import Meeting, Threads

VISUAL = (torch.arange(GROUP.tokens) > 5) & (torch.arange(GROUP.tokens) < 13)
TARGET = torch.where(VISUAL, torch.arange(GROUP.tokens) + 1.0, 0.0)
TARGET /= TARGET.sum()
WEIGHTS = torch.linspace(0.5, 2.0, len(ROWS))


def distances(
    layers: list[tuple[Tensor, Tensor]], heads: Heads, backend: Backend, sequence: SequenceGroup | None = None
) -> Tensor:
    of_layers = tuple(LayerAttention(query[ROWS], key, 0.3) for query, key in layers)
    group = GroupAttention(of_layers, GROUP, ROWS, COUNTS, VISUAL, heads, backend, sequence)
    return group.divergence_to(TARGET, "reverse_kl")


def slow(layers: list[tuple[Tensor, Tensor]], heads: Heads) -> Tensor:
    found = []
    for query, key in layers:
        policy = attention_policy(query, key, ROWS, scale=0.3, branches=GROUP.branches, key_mask=VISUAL, heads=heads)
        of_layer = divergence(policy, TARGET.expand_as(policy), "reverse_kl")
        found.append(of_layer.mean(0) if heads == "each" else of_layer)
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("heads", ["mean", "each"])
@pytest.mark.parametrize("backend", ["dense", "chunked", "triton"])
def test_it_is_that_of_the_policies(backend: Backend, heads: Heads) -> None:
    outcomes = []
    for compute in (lambda layers: distances(layers, heads, backend), lambda layers: slow(layers, heads)):
        layers = tensors()
        found = compute(layers)
        (found * WEIGHTS).sum().backward()
        outcomes.append([found.detach(), *(x.grad for layer in layers for x in layer)])
    for found, expected in zip(*outcomes, strict=True):
        assert expected is not None and expected.abs().max() > 1e-3
        assert torch.allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("heads", ["mean", "each"])
@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_rows_of_some_responses_are_as_among_all(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, heads: Heads, long: bool
) -> None:
    """Values and gradients; a long group is computed response by response, also one that has no rows."""
    if long:
        monkeypatch.setattr(groups, "MASKED_TOKENS", 8)
    chosen = [i != 1 for i in range(len(COUNTS))]
    kept = torch.tensor(chosen).repeat_interleave(torch.tensor(COUNTS))
    outcomes = []
    for alone in (True, False):
        layers = tensors()
        of_layers = tuple(LayerAttention(query[ROWS], key, 0.3) for query, key in layers)
        group = GroupAttention(of_layers, GROUP, ROWS, COUNTS, VISUAL, heads, backend)
        if alone:
            some = group.of(chosen)
            assert some.counts == tuple(n if own else 0 for n, own in zip(COUNTS, chosen, strict=True))
            assert len(some.rows) == len(some.layers[0].query) == int(kept.sum())
            found = some.divergence_to(TARGET, "reverse_kl")
        else:
            found = group.divergence_to(TARGET, "reverse_kl")[kept]
        (found * WEIGHTS[kept]).sum().backward()
        outcomes.append([found.detach(), *(x.grad for layer in layers for x in layer)])
    for one, other in zip(*outcomes, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("heads", ["mean", "each"])
def test_responses_of_a_long_group_are_computed_apart_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch, heads: Heads
) -> None:
    together = distances(tensors(), heads, "chunked")
    monkeypatch.setattr(groups, "MASKED_TOKENS", 8)
    calls: list[bool] = []
    apart = GroupAttention.apart
    monkeypatch.setattr(GroupAttention, "apart", lambda self: (calls.append(True), apart(self))[1])
    assert torch.allclose(distances(tensors(), heads, "chunked"), together, atol=1e-6) and calls


@pytest.mark.parametrize("heads", ["mean", "each"])
def test_ranks_that_share_the_heads_find_what_one_does(heads: Heads) -> None:
    meeting = Meeting(2)

    def outcome(sequence: SequenceGroup | None) -> list[Tensor]:
        layers = tensors() if sequence is None else tensors(sequence.own(HEADS), sequence.own(KEY_HEADS))
        found = distances(layers, heads, "chunked", sequence)
        (found * WEIGHTS).sum().div(1 if sequence is None else sequence.size).backward()
        return [found.detach(), *(x.grad for layer in layers for x in layer if x.grad is not None)]

    def of_rank(rank: int) -> list[Tensor]:
        with meeting.turn:
            return outcome(Threads(rank, 2, meeting))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(of_rank, range(2))
    expected = outcome(None)
    assert torch.allclose(first[0], expected[0], atol=1e-6) and torch.allclose(second[0], expected[0], atol=1e-6)
    for one, other, whole in zip(first[1:], second[1:], expected[1:], strict=True):
        assert torch.allclose(torch.cat([one, other], dim=1), whole, atol=1e-6)
