"""Groups in one stream: which token is where, and attention that is what it is for sequences apart."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ral_system.attention.group import GroupAttention, LayerAttention
from ral_system.attention.kernels import _varlen, packed_attention
from ral_system.attention.packing import PackedGroup, Packing
from ral_system.attention.record import record_attention

GROUP = PackedGroup(3, (2, 1, 4))


def test_a_group_by_hand() -> None:
    assert (GROUP.tokens, GROUP.starts) == (10, (3, 5, 6))
    assert GROUP.branches is not None and GROUP.branches.tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]
    assert GROUP.positions.tolist() == [0, 1, 2, 3, 4, 3, 3, 4, 5, 6]
    assert GROUP.rows(2, torch.tensor([0, 2, 3, 6])).tolist() == [0, 2, 6, 9]
    assert GROUP.own(1, torch.arange(10)).tolist() == [0, 1, 2, 5]
    assert PackedGroup(3, (2,)).branches is None


def test_a_stream_by_hand() -> None:
    packing = Packing((GROUP, PackedGroup(2, (1,)), PackedGroup(2, (1,))))
    assert packing.lengths == (10, 3, 3)
    assert (packing.tokens, packing.unshared_tokens) == (16, 3 * 3 + 7 + 3 + 3)
    assert packing.predicting.tolist() == [2, 3, 2, 2, 6, 7, 8, 11, 14]
    assert packing.runs == ((GROUP, 1), (PackedGroup(2, (1,)), 2))


def apart(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """Every sequence alone, by loops over its tokens; [T, H, D] of the stream."""
    _, heads, tokens, _ = query.shape
    found, at = torch.zeros(tokens, heads, value.shape[-1], dtype=query.dtype), 0
    for group in packing.groups:
        for response in range(len(group.responses)):
            own = (at + group.own(response, torch.arange(group.tokens))).tolist()
            for i, token in enumerate(own):
                for h in range(heads):
                    k, v = (t[0, h // (heads // key.shape[1]), own[: i + 1]] for t in (key, value))
                    found[token, h] = (scale * k @ query[0, h, token]).softmax(0) @ v
        at += group.tokens
    return found


GROUPS = st.builds(PackedGroup, st.integers(1, 6), st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple))


@pytest.mark.parametrize("masked_tokens", [0, 512])
@settings(deadline=None, max_examples=25)
@given(groups=st.lists(GROUPS, min_size=1, max_size=4))
def test_attention_is_that_of_sequences_apart(masked_tokens: int, groups: list[PackedGroup]) -> None:
    packing, generator = Packing(tuple(groups)), torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, heads, packing.tokens, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    weights = torch.randn(packing.tokens, 4, 8, generator=generator, dtype=torch.float64)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ral_system.attention.kernels.MASKED_TOKENS", masked_tokens)
        for attend in (packed_attention, apart):
            attention = attend(*tensors, packing, 0.3).reshape(packing.tokens, 4, 8)
            # prompts once: their tokens attend alike in all sequences
            found.append([attention, *torch.autograd.grad((attention * weights).sum(), tensors)])
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-10


def slow_varlen(q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, most_q: int, most_k: int) -> Tensor:
    """Compute the result of flash-attn's varlen kernel, causal from the last token back."""
    assert most_q == int(ends_q.diff().max()) and most_k == int(ends_k.diff().max())
    found = []
    for q0, q1, k0, k1 in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False):
        keys, values = (t[k0:k1].repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        logits = torch.einsum("rhd,shd->hrs", q[q0:q1], keys) * 0.3
        later = torch.ones(int(q1 - q0), int(k1 - k0)).triu(int(k1 - k0 - q1 + q0) + 1).bool()
        found.append(torch.einsum("hrs,shd->rhd", logits.masked_fill(later, -torch.inf).softmax(-1), values))
    return torch.cat(found)


@settings(deadline=None, max_examples=40)
@given(st.lists(GROUPS, min_size=1, max_size=4))
def test_calls_of_unequal_lengths_are_the_same_attention(groups: list[PackedGroup]) -> None:
    packing, generator = Packing(tuple(groups)), torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, heads, packing.tokens, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    found = []
    for attention in (_varlen(*tensors, packing, slow_varlen)[0], apart(*tensors, packing, 0.3)):
        found.append([attention, *torch.autograd.grad(attention.square().sum(), tensors)])
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-10


@pytest.mark.parametrize("heads", ["mean", "each"])
@pytest.mark.parametrize("masked", [False, True])
def test_divergences_of_long_groups_are_those_over_all_tokens(
    heads: Literal["mean", "each"], masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, generator = PackedGroup(9, (5, 0, 8)), torch.Generator().manual_seed(0)
    rows = torch.cat(
        [group.rows(b, torch.arange(8, 9 + n)) for b, n in enumerate(group.responses)]
    )  # the prompt's last as well
    counts = (6, 1, 9)
    mask = torch.arange(group.tokens) % 3 > 0 if masked else None
    found = []
    for threshold in (0, 512):
        monkeypatch.setattr("ral_system.attention.group.MASKED_TOKENS", threshold)
        generator.manual_seed(1)
        query, key = (torch.randn(n, h, 8, generator=generator, requires_grad=True) for n, h in ((16, 4), (22, 2)))
        attention = GroupAttention((LayerAttention(query, key, 0.4),), group, rows, counts, mask, heads, "chunked")
        assert attention.is_mostly_empty == (threshold == 0)
        records = []
        for b, n in enumerate(group.responses):
            shape = (counts[b], 9 + n) if heads == "mean" else (4, counts[b], 9 + n)
            policy = torch.rand(shape, generator=generator).softmax(-1)
            records.append([record_attention([policy], version=0, tokens=9 + n, top_k=None, dtype=torch.float32)])
        divergence = attention.divergence(records, "jsd")
        found.append((divergence, *torch.autograd.grad(divergence.square().sum(), (query, key))))
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() <= 1e-6
