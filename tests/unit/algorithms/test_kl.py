from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ral_system.algorithms.kl import k1, k2, k3

LOG_PROBS = st.floats(min_value=-15, max_value=0)


def test_values_by_hand() -> None:
    # pi = 1/4, ref = 1/2: d = ln 2, e^d - d - 1 = 2 - ln 2 - 1; the other way round d = -ln 2: 1/2 + ln 2 - 1
    pi, ref = torch.tensor([0.25, 0.5]).double().log(), torch.tensor([0.5, 0.25]).double().log()
    assert k3(pi, ref).tolist() == pytest.approx([1 - log(2), log(2) - 0.5], rel=1e-12)


@given(LOG_PROBS, LOG_PROBS)
def test_never_negative_and_zero_at_equality(a: float, b: float) -> None:
    pi, ref = torch.tensor([a, b]), torch.tensor([b, b])
    apart, equal = k3(pi, ref).tolist()
    assert apart >= 0
    assert equal == 0


def test_gradient_against_finite_differences_and_formula() -> None:
    pi = torch.linspace(-4, -0.1, 13, dtype=torch.float64, requires_grad=True)
    ref = torch.linspace(-0.5, -3, 13, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: k3(x, ref), (pi,))
    (gradient,) = torch.autograd.grad(k3(pi, ref).sum(), pi)
    assert torch.allclose(gradient, 1 - torch.exp(ref - pi.detach()), rtol=1e-12)  # d/dx (e^(c-x) - (c-x) - 1)


def test_gradient_is_exactly_zero_at_equality() -> None:
    pi = torch.tensor([-0.1, -7.3, -20.0], requires_grad=True)
    k3(pi, pi.detach()).sum().backward()
    assert pi.grad is not None and pi.grad.tolist() == [0, 0, 0]


def test_the_reference_is_constant() -> None:
    pi, ref = torch.tensor([-1.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    k3(pi, ref).sum().backward()
    assert ref.grad is None


def test_expectation_under_pi_is_the_divergence() -> None:
    generator = torch.Generator().manual_seed(1)
    log_pi = torch.randn(37, generator=generator, dtype=torch.float64).log_softmax(-1)
    log_ref = torch.randn(37, generator=generator, dtype=torch.float64).log_softmax(-1)
    expected = (log_pi.exp() * (log_pi - log_ref)).sum()
    assert (log_pi.exp() * k3(log_pi, log_ref)).sum().item() == pytest.approx(expected.item(), rel=1e-12)


def test_small_differences_keep_their_precision() -> None:
    # e^d - d - 1 ≈ d²/2; computed as exp(d) - 1 - d in float32 it would be 0 or 6e-8 here
    found = k3(torch.tensor([-1e-4 - 0.0]), torch.tensor([0.0])).item()
    assert found == pytest.approx(0.5e-8, rel=2e-3)


def test_k1_and_k2_by_hand() -> None:
    # pi = 1/4, ref = 1/2: log pi - log ref = -ln 2; half its square
    pi, ref = torch.tensor([0.25]).double().log(), torch.tensor([0.5]).double().log()
    assert k1(pi, ref).tolist() == pytest.approx([-log(2)])
    assert k2(pi, ref).tolist() == pytest.approx([log(2) ** 2 / 2])


def test_expected_gradients_on_policy() -> None:
    """k1's is 0; k2's is the gradient of KL(pi ‖ ref) itself. Expectations are exact sums over the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1)
    log_pi = logits.log_softmax(-1)
    p = log_pi.detach().exp()
    (exact,) = torch.autograd.grad((log_pi.exp() * (log_pi - ref)).sum(), logits, retain_graph=True)
    (first,) = torch.autograd.grad((p * k1(log_pi, ref)).sum(), logits, retain_graph=True)
    (second,) = torch.autograd.grad((p * k2(log_pi, ref)).sum(), logits)
    assert first.abs().max() < 1e-15 < exact.abs().max()
    assert torch.allclose(second, exact, rtol=1e-12)
