"""What pictures change in a response's tokens: numbers by hand, bounds, and the slow way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ral_system.algorithms.perception import advantage_factors, largest_share, papo, visual_dependence
from ral_system.config.perception import PapoConfig

WITH, WITHOUT = (0.5, 0.3, 0.2), (0.2, 0.3, 0.5)


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def settings(**changes: object) -> PapoConfig:
    given: dict[str, object] = {"name": "papo", "weight": 0.02, "masked": 0.6, "entropy_weight": 0.0}
    return PapoConfig.model_validate(given | {"entropy": "sampled"} | changes)


def test_values_and_slopes_by_hand() -> None:
    policy, blinded = logs(*WITH).requires_grad_(), logs(*WITHOUT).requires_grad_()
    found = visual_dependence(policy, blinded)
    assert found.tolist() == pytest.approx([0.316, 0, 0.584], abs=5e-4)
    found.sum().backward()
    assert policy.grad is not None and blinded.grad is None
    assert policy.grad.tolist() == pytest.approx([0.6, 0, -1.5])


def test_the_mean_estimates_one_divergence_and_its_slope_is_of_the_other() -> None:
    policy, blinded = logs(*WITH).requires_grad_(), logs(*WITHOUT)
    p = policy.detach().exp()
    assert (p * visual_dependence(policy, blinded)).sum().item() == pytest.approx(
        (p * (policy - blinded)).sum().item()  # KL(pi ‖ pi')
    )
    (slope,) = torch.autograd.grad((p * visual_dependence(policy, blinded)).sum(), policy)
    (other,) = torch.autograd.grad((blinded.exp() * (blinded - policy)).sum(), policy)  # of KL(pi' ‖ pi)
    (of_mass,) = torch.autograd.grad(policy.exp().sum(), policy)  # which the normalisation takes away
    torch.testing.assert_close(slope, other + of_mass)


@pytest.mark.parametrize("gap", [2.7, 30.0, -11.5, -30.0, 1e4])
def test_beyond_the_bound_there_is_no_gradient(gap: float) -> None:
    policy = torch.tensor([-1.0], requires_grad=True)
    found = visual_dependence(policy, policy.detach() + gap)
    assert found.item() == 10
    found.backward()
    assert policy.grad is not None and policy.grad.item() == 0


def test_papo_is_a_mean_over_the_tokens_of_the_update() -> None:
    policy, blinded = logs(*WITH)[None].requires_grad_(), logs(*WITHOUT)[None]
    seen = torch.tensor([[True, True, False]])
    dependence = visual_dependence(policy, blinded)
    loss = papo(policy, torch.zeros(1, 3), dependence, seen, settings(), tokens=8)
    assert loss.item() == pytest.approx(-0.02 * (math.log(2.5) - 0.6) / 8)
    (slope,) = torch.autograd.grad(loss, policy)
    assert slope[0].tolist() == pytest.approx([-0.02 * 0.6 / 8, 0, 0])


@pytest.mark.parametrize("entropy", ["sampled", "exact"])
def test_papo_lowers_the_entropy_of_its_kind(entropy: str) -> None:
    policy, exact = logs(*WITH)[None].requires_grad_(), torch.tensor([[0.7, 0.8, 0.9]], requires_grad=True)
    seen, none = torch.tensor([[True, False, True]]), torch.zeros(1, 3)
    loss = papo(policy, exact, none, seen, settings(entropy=entropy, entropy_weight=0.05), tokens=4)
    sampled = -math.log(0.5) - math.log(0.2)
    assert loss.item() == pytest.approx(0.05 * (sampled if entropy == "sampled" else 1.6) / 4)
    loss.backward()
    trained, other = (policy, exact) if entropy == "sampled" else (exact, policy)
    assert trained.grad is not None and other.grad is None
    sign = -1 if entropy == "sampled" else 1
    assert trained.grad[0].tolist() == pytest.approx([sign * 0.0125, 0, sign * 0.0125])


def test_the_sampled_entropy_has_no_mean_gradient_where_tokens_come_from_the_policy() -> None:
    logits = logs(*WITH).requires_grad_()
    policy, one = logits.log_softmax(-1), torch.ones(1, 3, dtype=torch.bool)
    mean = torch.zeros_like(logits)
    for token, probability in enumerate(WITH):
        value = policy[token].expand(1, 1)
        loss = papo(value, value, 0 * value, one[:, :1], settings(entropy_weight=1.0), tokens=1)
        mean += probability * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert mean.abs().max() < 1e-12


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=4),
    st.sampled_from([0.1, 0.3, 0.4, 0.5, 1.0]),
)
def test_the_largest_of_each_sequence_are_kept(rows: list[list[int]], share: float) -> None:
    longest = max(map(len, rows))
    values = torch.full((len(rows), longest), 99.0)
    mask = torch.zeros(values.shape, dtype=torch.bool)
    expected = torch.zeros_like(mask)
    for b, row in enumerate(rows):
        values[b, : len(row)], mask[b, : len(row)] = torch.tensor(row), True
        count = -(-round(share * 10) * len(row) // 10)
        expected[b, sorted(range(len(row)), key=lambda t, row=row: (-row[t], t))[:count]] = True
    assert torch.equal(largest_share(values, mask, share), expected)


def test_a_share_that_rounding_lifts_over_a_whole_number_keeps_that_number() -> None:
    assert largest_share(torch.arange(30.0)[None], torch.ones(1, 30, dtype=torch.bool), 0.1).sum() == 3


def test_a_sequence_without_tokens_keeps_none() -> None:
    mask = torch.tensor([[False, False], [True, True]])
    assert largest_share(torch.ones(2, 2), mask, 0.4).tolist() == [[False, False], [True, False]]


def test_factors_by_hand() -> None:
    found = advantage_factors(np.array([0.1, 0.2, 0.4, 0.9]), 0.9)
    assert found == pytest.approx([0.9, 0.9333, 1.0, 1.1667], abs=1e-4)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=9), st.floats(0.1, 1))
def test_factors_have_mean_one_and_the_order_of_their_responses(dependence: list[float], least: float) -> None:
    found = advantage_factors(np.array(dependence), least)
    assert np.isfinite(found).all() and found.mean() == pytest.approx(1)
    if max(dependence) == min(dependence):
        assert (found == 1).all()
    else:
        assert found.min() == pytest.approx(least) and found.max() <= least + (1 - least) * len(found) + 1e-9
        assert (found[np.argsort(dependence, kind="stable")] == np.sort(found)).all()


def test_one_response_that_depends_alone_takes_as_much_as_the_update_has_responses() -> None:
    """The factor's only bound is beta + (1 - beta) n: 13.7 for n = 128. The alarm `advantage_factor` tells."""
    found = advantage_factors(np.array([*[0.0] * 127, 9.0]), 0.9)
    assert found[-1] == pytest.approx(0.9 + 0.1 * 128) and found[:-1] == pytest.approx(0.9)
    assert found.mean() == pytest.approx(1)


def test_an_update_without_media_has_no_factors() -> None:
    assert advantage_factors(np.zeros(0), 0.9).shape == (0,)
