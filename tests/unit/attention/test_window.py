"""Sliding windows and pictures that attend in both directions, against loops over tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ral_system.attention.divergence import policy_blocks
from ral_system.attention.group import GroupAttention, LayerAttention
from ral_system.attention.kernels import packed_attention
from ral_system.attention.mean_attention import log_mean_attention
from ral_system.attention.packing import PackedGroup, Packing
from ral_system.attention.policy import attention_policy
from ral_system.attention.window import Window

GROUP = PackedGroup(4, (3, 5))
WINDOW = 4


def slow_policy(query: Tensor, key: Tensor, group: PackedGroup, rows: list[int], window: int) -> Tensor:
    """[R, T]: mean over heads of each row's softmax over the keys of its own sequence, then without itself."""
    found = torch.zeros(len(rows), group.tokens, dtype=query.dtype)
    branches, positions = group.branches.tolist(), group.positions.tolist()
    for i, row in enumerate(rows):
        seen = [
            key_at
            for key_at in range(row + 1)
            if branches[key_at] in (0, branches[row]) and positions[row] - positions[key_at] < window
        ]
        for h in range(query.shape[1]):
            logits = torch.stack([query[row, h] @ key[k, h // (query.shape[1] // key.shape[1])] for k in seen]) * 0.4
            for k, weight in zip(seen, logits.softmax(0), strict=True):
                if k != row:
                    found[i, k] += weight / query.shape[1]
    mass = found.sum(-1, keepdim=True)
    return found / torch.where(mass > 0, mass, 1.0)


@pytest.mark.parametrize("backend", ["dense", "chunked", "triton"])
def test_rows_see_a_window_of_their_own_sequence(backend: str) -> None:
    """By hand: the second response begins at 7, behind a prompt of 4; its first row sees 1 to 3 and itself."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if backend == "triton" else torch.float64
    query, key = (torch.randn(12, heads, 16, generator=generator, dtype=dtype) for heads in (4, 2))
    rows, window = list(range(12)), Window(WINDOW, GROUP.positions)
    masks = {"scale": 0.4, "branches": GROUP.branches, "window": window}
    (found,) = policy_blocks(query, key, torch.tensor(rows), backend=backend, **masks)  # type: ignore[arg-type]
    assert found[7].nonzero().flatten().tolist() == [1, 2, 3]
    assert found[11].nonzero().flatten().tolist() == [8, 9, 10]
    assert torch.allclose(found, slow_policy(query, key, GROUP, rows, WINDOW).to(found), atol=1e-6)
    assert torch.allclose(attention_policy(query, key, torch.tensor(rows), **masks).to(found), found, atol=1e-6)


def test_a_layer_of_a_group_has_the_window_of_each_response() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(12, heads, 16, generator=generator, dtype=torch.float64) for heads in (4, 2))
    rows = torch.arange(4, 12)
    layers = (LayerAttention(query[4:], key, 0.4, WINDOW), LayerAttention(query[4:], key, 0.4))
    group = GroupAttention(layers, GROUP, rows, (3, 5), None, "mean", "chunked")
    expected = slow_policy(query, key, GROUP, rows.tolist(), WINDOW)
    assert torch.allclose(torch.cat(list(group.policies(0))), expected)
    assert not torch.allclose(torch.cat(list(group.policies(1))), expected)
    sums = torch.stack([expected[:3, :4].sum(0), expected[3:, :4].sum(0)])
    assert torch.allclose(group.glances(torch.arange(4))[0], sums)
    for response, alone in enumerate(group.apart()):
        own = GROUP.own(response, expected[slice(0, 3) if response == 0 else slice(3, 8)])
        assert torch.allclose(torch.cat(list(alone.policies(0))), own)


def test_the_mean_attention_of_keys_within_the_window() -> None:
    generator = torch.Generator().manual_seed(2)
    query, key = (torch.randn(12, heads, 16, generator=generator, dtype=torch.float64) for heads in (4, 2))
    rows, mask = torch.tensor([5, 6]), torch.arange(12) == 3
    layer, window = LayerAttention(query[rows], key, 0.4, WINDOW), Window(WINDOW, GROUP.positions)
    (found,) = log_mean_attention(layer, rows, mask, branches=GROUP.branches, window=window)
    weights = []
    for head in range(4):
        for row, seen in ((5, [2, 3, 4, 5]), (6, [3, 4, 5, 6])):
            logits = key[seen, head // 2] @ query[row, head] * 0.4
            weights.append(logits.softmax(0)[seen.index(3)])
    assert torch.allclose(found.exp(), torch.stack(weights).view(4, 2).mean(1))


def test_a_window_that_holds_all_tokens_is_none() -> None:
    def of(window: int | None) -> Window | None:
        layer = LayerAttention(torch.zeros(1, 2, 16), torch.zeros(12, 2, 16), 0.4, window)
        return GroupAttention((layer,), GROUP, torch.tensor([4]), (1, 0), None, "mean", "auto").window(layer)

    assert of(None) is None and of(9) is None  # the longest sequence has nine tokens
    found = of(8)
    assert found is not None and found.size == 8 and torch.equal(found.positions, GROUP.positions)


@pytest.mark.parametrize("size", [0, 4])
def test_a_window_that_does_not_fit_is_one_line(size: int) -> None:
    tokens = torch.zeros(5, 2, 8)
    at = torch.arange(5 if size == 0 else 6)
    with pytest.raises(ValueError, match=r"^window must have a size of at least 1 and positions int64 \[5\] on cpu"):
        attention_policy(tokens, tokens, torch.tensor([1]), scale=1.0, window=Window(size, at))


# --- packed attention ---


def slow(query: Tensor, key: Tensor, value: Tensor, packing: Packing, window: int | None, scale: float = 0.3) -> Tensor:
    """Every sequence alone, token by token: what it sees are tokens before it, and all of its picture, in the window.

    [T, H, D]
    """
    _, heads, tokens, _ = query.shape
    found, at = torch.zeros(tokens, heads, value.shape[-1], dtype=query.dtype), 0
    for group in packing.groups:
        for response in range(len(group.responses)):
            own = (at + group.own(response, torch.arange(group.tokens))).tolist()
            for i, token in enumerate(own):
                of = next(((a, b) for a, b in group.pictures if a <= i < b), (i, i + 1))
                seen = [j for j in range(len(own)) if j <= i or of[0] <= j < of[1]]
                seen = [own[j] for j in seen if window is None or j > i - window]
                for h in range(heads):
                    k, v = (t[0, h // (heads // key.shape[1]), seen] for t in (key, value))
                    found[token, h] = (scale * k @ query[0, h, token]).softmax(0) @ v
        at += group.tokens
    return found


@st.composite
def groups(draw: st.DrawFn) -> PackedGroup:
    """A prompt with up to two pictures that do not touch, and up to three responses."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    ends = torch.tensor(lengths).cumsum(0).tolist()
    pictures = tuple((a, b) for a, b in list(zip([0, *ends], ends, strict=False))[1::2])
    responses = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))
    return PackedGroup(sum(lengths), responses, pictures)


@pytest.mark.parametrize("masked_tokens", [0, 512])
@settings(deadline=None, max_examples=25)
@given(packed=st.lists(groups(), min_size=1, max_size=3), window=st.one_of(st.none(), st.integers(1, 9)))
def test_attention_is_that_of_sequences_apart(
    masked_tokens: int, packed: list[PackedGroup], window: int | None
) -> None:
    """Values and gradients, also where a window is smaller than a picture."""
    packing, generator = Packing(tuple(packed)), torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, heads, packing.tokens, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    weights = torch.randn(packing.tokens, 4, 8, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ral_system.attention.kernels.MASKED_TOKENS", masked_tokens)
        fast = packed_attention(*tensors, packing, 0.3, window)[0]
    found = [
        [attention, *torch.autograd.grad((attention * weights).sum(), tensors)]
        for attention in (fast, slow(*tensors, packing, window))
    ]
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-10


def test_pictures_change_attention() -> None:
    query, key, value = (torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    causal, both = (
        packed_attention(query, key, value, Packing((g,)), 0.3)[0]
        for g in (PackedGroup(4, (2,)), PackedGroup(4, (2,), ((1, 3),)))
    )
    changed = (causal - both).abs().amax((1, 2)) > 1e-3
    assert changed.tolist() == [False, True, False, False, False, False]
