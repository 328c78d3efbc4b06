import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ral_system.algorithms.attention_loss import attention_loss, jensen_shannon

LN2 = math.log(2)


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float64, sparsity: float = 0.0) -> Tensor:
    """Random distributions; with `sparsity`, that share of keys is exactly 0."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(*shape, generator=generator, dtype=dtype).mul(2).exp()
    weights *= torch.rand(*shape, generator=generator) >= sparsity
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)


def slow_divergence(p: list[float], q: list[float]) -> float:
    """½ KL(p || m) + ½ KL(q || m) term by term, as the paper writes it."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = (a + b) / 2
        total += 0.5 * a * math.log(a / m) if a > 0 else 0.0
        total += 0.5 * b * math.log(b / m) if b > 0 else 0.0
    return total


def test_divergence_by_hand() -> None:
    # p = (1/2, 1/2, 0), q = (1/2, 0, 1/2): m = (1/2, 1/4, 1/4); KL(p||m) = 1/2 ln 2 = KL(q||m), so JSD = 1/2 ln 2
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.0, 0.5])
    assert jensen_shannon(p, q).item() == pytest.approx(0.5 * LN2, rel=1e-6)
    # p = (1, 0), q = (1/2, 1/2): m = (3/4, 1/4); 1/2 ln(4/3) + 1/2 (1/2 ln(2/3) + 1/2 ln 2) = 0.2157616
    assert jensen_shannon(torch.tensor([1.0, 0]), torch.tensor([0.5, 0.5])).item() == pytest.approx(0.2157616, rel=1e-6)


@pytest.mark.parametrize("keys", [1, 2, 7, 37])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_divergence_equals_slow_code_and_is_symmetric(keys: int, sparsity: float) -> None:
    p, q = rows(1, 5, 3, keys, sparsity=sparsity), rows(2, 5, 3, keys, sparsity=sparsity)
    found = jensen_shannon(p, q)
    assert found.shape == (5, 3)
    expected = [
        slow_divergence(a, b) for a, b in zip(p.view(-1, keys).tolist(), q.view(-1, keys).tolist(), strict=True)
    ]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-10, abs=1e-15)
    assert torch.allclose(found, jensen_shannon(q, p), rtol=1e-12, atol=1e-15)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([0.0, 0.3, 0.9]))
def test_divergence_lies_between_zero_and_ln_2(seed: int, keys: int, sparsity: float) -> None:
    found = jensen_shannon(
        rows(seed, 8, keys, dtype=torch.float32, sparsity=sparsity),
        rows(seed + 1, 8, keys, dtype=torch.float32, sparsity=sparsity),
    )
    assert found.min().item() >= -1e-7
    assert found.max().item() <= LN2 + 1e-6


def test_ln_2_is_reached_by_rows_without_a_common_key() -> None:
    p, q = torch.tensor([[1.0, 0, 0], [0.3, 0.7, 0]]), torch.tensor([[0, 0.25, 0.75], [0, 0, 1.0]])
    assert jensen_shannon(p, q).tolist() == pytest.approx([LN2, LN2], rel=1e-6)


def test_gradients_against_finite_differences_and_the_papers_formula() -> None:
    p, q = rows(3, 4, 11).requires_grad_(), rows(4, 4, 11).requires_grad_()
    assert torch.autograd.gradcheck(jensen_shannon, (p, q))
    gradient_p, gradient_q = torch.autograd.grad(jensen_shannon(p, q).sum(), (p, q))
    a, b = p.detach(), q.detach()
    assert torch.allclose(gradient_p, 0.5 * torch.log(2 * a / (a + b)), rtol=1e-9, atol=1e-14)
    assert torch.allclose(gradient_q, 0.5 * torch.log(2 * b / (a + b)), rtol=1e-9, atol=1e-14)


def test_gradient_through_one_softmax_is_the_papers() -> None:
    # dJSD/de_i = p_i (g_i - Σ_j p_j g_j) with g = ½ ln(2p / (p+q))
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    q = rows(6, 3, 9)
    (found,) = torch.autograd.grad(jensen_shannon(logits.softmax(-1), q).sum(), logits)
    p = logits.detach().softmax(-1)
    g = 0.5 * torch.log(2 * p / (p + q))
    assert torch.allclose(found, p * (g - (p * g).sum(-1, keepdim=True)), rtol=1e-9, atol=1e-14)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 97), st.sampled_from([torch.float32, torch.float64]))
def test_value_and_gradient_are_exactly_zero_at_equality(seed: int, keys: int, dtype: torch.dtype) -> None:
    p = rows(seed, 4, keys, dtype=dtype, sparsity=0.2).requires_grad_()
    divergence = jensen_shannon(p, p.detach().clone())
    divergence.sum().backward()
    assert p.grad is not None
    assert divergence.tolist() == [0.0] * 4
    assert not p.grad.any()


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
        ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
        ([0.5, 0.5, 0.0], [0.0, 0.5, 0.5]),
        ([1e-40, 1.0, 0.0], [1.0, 1e-40, 0.0]),
    ],
)
def test_zeros_have_finite_values_and_gradients(p: list[float], q: list[float]) -> None:
    a, b = torch.tensor(p, requires_grad=True), torch.tensor(q, requires_grad=True)
    value = jensen_shannon(a, b)
    value.backward()
    assert value.item() == pytest.approx(slow_divergence(p, q), rel=1e-6, abs=1e-9)
    assert a.grad is not None and a.grad.isfinite().all()
    assert b.grad is not None and b.grad.isfinite().all()


# --- the advantage-weighted loss ----------------------------------------------------------------------------------

ADVANTAGES = [1.5, -0.5, 0.0, 2.0]
LENGTHS = [3, 1, 4, 0]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    divergence = torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(4)[None] < torch.tensor(LENGTHS)[:, None]
    return divergence, torch.tensor(ADVANTAGES, dtype=torch.float64), mask


def slow_loss(divergence: Tensor, reduction: str, tokens: int, sequences: int) -> float:
    total = 0.0
    for b, (advantage, length) in enumerate(zip(ADVANTAGES, LENGTHS, strict=True)):
        values = [advantage * divergence[b, t].item() for t in range(length)]
        if reduction == "token_mean":
            total += sum(values) / tokens
        elif values:
            total += sum(values) / len(values) / sequences
    return total


def test_both_reductions_by_hand() -> None:
    # sequence 1: A = 2, JSD 0.1, 0.3; sequence 2: A = -1, JSD 0.4
    # token mean over 3 rows: (0.2 + 0.6 - 0.4) / 3 = 0.4 / 3; sequence mean over 2: (0.4 - 0.4) / 2 = 0
    divergence, advantages = torch.tensor([[0.1, 0.3], [0.4, 9.0]]), torch.tensor([2.0, -1.0])
    mask = torch.tensor([[True, True], [True, False]])
    counts = {"global_tokens": 3, "global_sequences": 2}
    assert attention_loss(divergence, advantages, mask, reduction="token_mean", **counts).item() == pytest.approx(
        0.4 / 3
    )
    found = attention_loss(divergence, advantages, mask, reduction="sequence_mean", **counts).item()
    assert found == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_loss_equals_slow_code_and_micro_batches_add_up(reduction: str) -> None:
    divergence, advantages, mask = batch()
    counts = {"global_tokens": 20, "global_sequences": 7}  # of the whole update: more than this batch has
    whole = attention_loss(divergence, advantages, mask, reduction=reduction, **counts).item()  # type: ignore[arg-type]
    assert whole == pytest.approx(slow_loss(divergence, reduction, 20, 7), rel=1e-12)
    for cuts in ((0, 1, 2, 3, 4), (0, 2, 4), (0, 3, 4)):
        shares = [
            attention_loss(divergence[i:j], advantages[i:j], mask[i:j], reduction=reduction, **counts)  # type: ignore[arg-type]
            for i, j in pairwise(cuts)
        ]
        assert sum(s.item() for s in shares) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_garbage_behind_the_mask_does_not_leak(reduction: str, garbage: float) -> None:
    divergence, advantages, mask = batch()
    counts = {"global_tokens": 8, "global_sequences": 4}
    expected = attention_loss(divergence, advantages, mask, reduction=reduction, **counts)  # type: ignore[arg-type]
    spoilt = torch.where(mask, divergence, garbage).requires_grad_()
    found = attention_loss(spoilt, advantages, mask, reduction=reduction, **counts)  # type: ignore[arg-type]
    found.backward()
    assert found.item() == expected.item()
    assert spoilt.grad is not None and spoilt.grad.isfinite().all()
    assert not spoilt.grad[~mask].any()


def test_the_sign_of_the_advantage_is_the_sign_of_the_force() -> None:
    divergence, advantages, mask = batch()
    divergence.requires_grad_()
    attention_loss(divergence, advantages, mask, reduction="token_mean", global_tokens=8, global_sequences=4).backward()
    assert divergence.grad is not None
    # minimising pulls a good row back (gradient A/N > 0) and pushes a bad one away (A/N < 0)
    assert divergence.grad[0, 0].item() == 1.5 / 8
    assert divergence.grad[1, 0].item() == -0.5 / 8
    assert not divergence.grad[2].any()


def test_another_reduction_is_refused_by_name() -> None:
    divergence, advantages, mask = batch()
    with pytest.raises(ValueError, match="reduction='sum'; known: token_mean, sequence_mean"):
        attention_loss(divergence, advantages, mask, reduction="sum", global_tokens=1, global_sequences=1)  # type: ignore[arg-type]
