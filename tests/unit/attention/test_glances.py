"""Glances of packed groups, against policies that are written out, with their gradient, by each backend."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from ral_system.attention import chunked
from ral_system.attention import group as groups
from ral_system.attention.group import GroupAttention, LayerAttention
from ral_system.attention.packing import PackedGroup
from ral_system.attention.policy import attention_policy
from ral_system.attention.sequence import SequenceGroup
from ral_system.config.choices import Backend, Heads
from tests.unit.attention.test_heads_of_ranks import Meeting, Threads

HEADS, KEY_HEADS, DIM, LAYERS = 4, 2, 16, 2
GROUP = PackedGroup(20, (5, 9, 7))
ROWS = torch.tensor([21, 24, 25, 30, 33, 34, 40])
COUNTS = (2, 3, 2)
KEYS = torch.tensor([2, 3, 11, 12, 19])


@pytest.fixture(params=[1, 1000])
def block_of_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rows one by one, and all together."""
    monkeypatch.setitem(chunked._BLOCK_BYTES, "cpu", 1 if request.param == 1 else 2**30)
    yield


def tensors(heads: slice = slice(None), key_heads: slice = slice(None)) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    drawn = [(torch.randn(GROUP.tokens, HEADS, DIM), torch.randn(GROUP.tokens, KEY_HEADS, DIM)) for _ in range(LAYERS)]
    return [(q[:, heads].clone().requires_grad_(), k[:, key_heads].clone().requires_grad_()) for q, k in drawn]


def glances(
    layers: list[tuple[Tensor, Tensor]], heads: Heads, backend: Backend, sequence: SequenceGroup | None = None
) -> Tensor:
    of_layers = tuple(LayerAttention(query[ROWS], key, 0.3) for query, key in layers)
    mask = torch.arange(GROUP.tokens) > 5  # which does not matter
    return GroupAttention(of_layers, GROUP, ROWS, COUNTS, mask, heads, backend, sequence).glances(KEYS)


def slow(layers: list[tuple[Tensor, Tensor]], heads: Heads) -> Tensor:
    """Row by row out of whole policies."""
    found = []
    for query, key in layers:
        policy = attention_policy(query, key, ROWS, scale=0.3, branches=GROUP.branches, heads=heads)
        found.append(torch.stack([part.sum(-2) for part in policy[..., KEYS].split(COUNTS, dim=-2)], dim=-2))
    return torch.stack(found)


@pytest.mark.usefixtures("block_of_rows")
@pytest.mark.parametrize("heads", ["mean", "each"])
@pytest.mark.parametrize("backend", ["dense", "chunked", "triton"])
def test_they_are_sums_of_the_policies(backend: Backend, heads: Heads) -> None:
    weights = torch.randn((LAYERS, *((HEADS,) if heads == "each" else ()), len(COUNTS), len(KEYS)))
    outcomes = []
    for compute in (lambda layers: glances(layers, heads, backend), lambda layers: slow(layers, heads)):
        layers = tensors()
        found = compute(layers)
        (found * weights).sum().backward()
        outcomes.append([found.detach(), *(x.grad for layer in layers for x in layer)])
    for found, expected in zip(*outcomes, strict=True):
        assert expected is not None and expected.abs().max() > 1e-3
        assert torch.allclose(found, expected, atol=2e-6)


def test_responses_of_a_long_group_are_computed_apart_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    together = glances(tensors(), "mean", "chunked")
    monkeypatch.setattr(groups, "MASKED_TOKENS", 8)
    apart = glances(tensors(), "mean", "chunked")
    assert torch.allclose(apart, together, atol=1e-6)


def test_other_responses_have_no_gradient() -> None:
    layers = tensors()
    glances(layers, "mean", "chunked")[:, 1].square().sum().backward()
    for query, key in layers:
        assert query.grad is not None and key.grad is not None
        of_others = [x for x in range(20, 41) if not 25 <= x < 34]
        assert query.grad[of_others].abs().max() == key.grad[of_others].abs().max() == 0 < query.grad.abs().max()


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_ranks_that_share_the_heads_find_what_one_does(backend: Backend) -> None:
    meeting = Meeting(2)

    def outcome(sequence: SequenceGroup | None) -> list[Tensor]:
        layers = tensors() if sequence is None else tensors(sequence.own(HEADS), sequence.own(KEY_HEADS))
        found = glances(layers, "mean", backend, sequence)
        found.square().sum().div(1 if sequence is None else sequence.size).backward()
        return [found.detach(), *(x.grad for layer in layers for x in layer if x.grad is not None)]

    def of_rank(rank: int) -> list[Tensor]:
        with meeting.turn:
            return outcome(Threads(rank, 2, meeting))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(of_rank, range(2))
    expected = outcome(None)
    assert torch.allclose(first[0], expected[0], atol=1e-6) and torch.equal(first[0], second[0])
    for one, other, whole in zip(first[1:], second[1:], expected[1:], strict=True):
        assert torch.allclose(torch.cat([one, other], dim=1), whole, atol=1e-6)
