"""Divergences against slow code, by hand and at the edges, values and slopes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ral_system.algorithms.divergence_sum import divergence
from ral_system.errors import ConfigError
from ral_system.registry import DIVERGENCES

LN2 = math.log(2)


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float64, sparsity: float = 0.0) -> Tensor:
    """Random distributions; with `sparsity`, that share of keys is exactly 0."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(*shape, generator=generator, dtype=dtype).mul(2).exp()
    weights *= torch.rand(*shape, generator=generator) >= sparsity
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)


def jsd(p: Tensor, q: Tensor) -> Tensor:
    return divergence(p, q, "jsd")


def slow_divergence(p: list[float], q: list[float], kind: str = "jsd") -> float:
    """Term by term, as each is defined over distributions."""

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / max(y, 1e-30)) for x, y in zip(a, b, strict=True) if x > 0)

    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return {
        "jsd": lambda: 0.5 * kl(p, m) + 0.5 * kl(q, m),
        "reverse_kl": lambda: kl(p, q),
        "forward_kl": lambda: kl(q, p),
        "tv": lambda: 0.5 * sum(abs(x - y) for x, y in zip(p, q, strict=True)),
        "hellinger": lambda: 0.5 * sum((math.sqrt(x) - math.sqrt(y)) ** 2 for x, y in zip(p, q, strict=True)),
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # p = (1/2, 1/2), q = (1/4, 3/4)
        (
            "jsd",
            0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5) + 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)),
        ),
        ("reverse_kl", 0.5 * math.log(2) + 0.5 * math.log(2 / 3)),
        ("forward_kl", 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)),
        ("tv", 0.25),
        ("hellinger", 1 - (math.sqrt(1 / 8) + math.sqrt(3 / 8))),
    ],
)
def test_by_hand(kind: str, expected: float) -> None:
    found = divergence(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]), kind)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", DIVERGENCES.names)
@pytest.mark.parametrize("keys", [1, 2, 7, 37])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_equals_slow_code(kind: str, keys: int, sparsity: float) -> None:
    p, q = rows(1, 5, 3, keys, sparsity=sparsity), rows(2, 5, 3, keys, sparsity=sparsity)
    q = torch.where(q.sum(-1, keepdim=True) > 0, q, 1 / keys)
    p = torch.where(p.sum(-1, keepdim=True) > 0, p, 1 / keys)
    found = divergence(p, q, kind)  # type: ignore[arg-type]
    assert found.shape == (5, 3)
    expected = [
        slow_divergence(a, b, kind) for a, b in zip(p.view(-1, keys).tolist(), q.view(-1, keys).tolist(), strict=True)
    ]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("kind", DIVERGENCES.names)
def test_near_equality_keeps_its_precision_in_float32(kind: str) -> None:
    # relative changes of 1e-3: the terms nearly cancel, the divergence is 1e-7
    p = rows(7, 4, 50)
    q = p * (1 + 1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64))
    p, q = p.float(), (q / q.sum(-1, keepdim=True)).float()
    expected = divergence(p.double(), q.double(), kind)  # type: ignore[arg-type]
    tolerance = {"reverse_kl": 1e-3, "forward_kl": 1e-3}.get(kind, 1e-5)
    assert torch.allclose(divergence(p, q, kind).double(), expected, rtol=tolerance, atol=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["jsd", "tv", "hellinger"])
def test_is_symmetric(kind: str) -> None:
    p, q = rows(1, 5, 37, sparsity=0.5), rows(2, 5, 37, sparsity=0.5)
    assert torch.allclose(divergence(p, q, kind), divergence(q, p, kind), rtol=1e-12, atol=1e-15)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([0.0, 0.3, 0.9]))
def test_divergence_lies_between_zero_and_ln_2(seed: int, keys: int, sparsity: float) -> None:
    found = jsd(
        rows(seed, 8, keys, dtype=torch.float32, sparsity=sparsity),
        rows(seed + 1, 8, keys, dtype=torch.float32, sparsity=sparsity),
    )
    assert found.min().item() >= -1e-7
    assert found.max().item() <= LN2 + 1e-6


def test_ln_2_is_reached_by_rows_without_a_common_key() -> None:
    p, q = torch.tensor([[1.0, 0, 0], [0.3, 0.7, 0]]), torch.tensor([[0, 0.25, 0.75], [0, 0, 1.0]])
    assert jsd(p, q).tolist() == pytest.approx([LN2, LN2], rel=1e-6)


@pytest.mark.parametrize("kind", DIVERGENCES.names)
def test_gradients_against_finite_differences(kind: str) -> None:
    p = rows(3, 4, 11).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: divergence(p, rows(4, 4, 11), kind), (p,))  # type: ignore[arg-type]


def test_the_gradient_is_the_papers() -> None:
    p, q = rows(3, 4, 11).requires_grad_(), rows(4, 4, 11)
    (found,) = torch.autograd.grad(jsd(p, q).sum(), p)
    a = p.detach()
    assert torch.allclose(found, 0.5 * torch.log(2 * a / (a + q)), rtol=1e-9, atol=1e-14)


def test_gradient_through_one_softmax_is_the_papers() -> None:
    # dJSD/de_i = p_i (g_i - Σ_j p_j g_j) with g = ½ ln(2p / (p+q))
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    q = rows(6, 3, 9)
    (found,) = torch.autograd.grad(jsd(logits.softmax(-1), q).sum(), logits)
    p = logits.detach().softmax(-1)
    g = 0.5 * torch.log(2 * p / (p + q))
    assert torch.allclose(found, p * (g - (p * g).sum(-1, keepdim=True)), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kind", DIVERGENCES.names)
@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 97), st.sampled_from([torch.float32, torch.float64]))
def test_value_and_gradient_are_exactly_zero_at_equality(kind: str, seed: int, keys: int, dtype: torch.dtype) -> None:
    p = rows(seed, 4, keys, dtype=dtype, sparsity=0.2).requires_grad_()
    found = divergence(p, p.detach().clone(), kind)  # type: ignore[arg-type]
    found.sum().backward()
    assert p.grad is not None
    assert found.tolist() == [0.0] * 4
    assert not p.grad.any()


@pytest.mark.parametrize("kind", DIVERGENCES.names)
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
def test_zeros_have_finite_values_and_gradients(kind: str, p: list[float], q: list[float]) -> None:
    a = torch.tensor(p, requires_grad=True)
    value = divergence(a, torch.tensor(q), kind)  # type: ignore[arg-type]
    value.backward()
    assert value.item() == pytest.approx(slow_divergence(p, q, kind), rel=1e-5, abs=1e-9)
    assert a.grad is not None and a.grad.isfinite().all()


def test_another_kind_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=f"'kl': no such divergence; .*{', '.join(DIVERGENCES.names)}$"):
        divergence(torch.ones(1), torch.ones(1), "kl")
