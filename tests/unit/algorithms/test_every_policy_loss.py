"""What holds for all policy losses: masks, constants, on-policy gradients, central differences."""

from collections.abc import Callable
from dataclasses import replace
from math import exp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ral_system.algorithms.distillation import kept_and_rest, top_tokens
from ral_system.algorithms.policy_losses.dppo import kl_divergence, token_shift, total_variation
from ral_system.algorithms.policy_losses.inputs import LossInputs
from tests.unit.algorithms.losses import EVERY, PARSE, by_hand, inputs_of, lost


def top_of(log_p: Tensor) -> Tensor:
    """{y, rest}, the smallest set of top tokens."""
    p = log_p.exp()
    return torch.stack([log_p, torch.log1p(-p)], dim=-1).detach()


PROBABILITIES = st.lists(st.floats(1e-4, 0.9999), min_size=3, max_size=3)


@pytest.mark.parametrize("name", EVERY)
@given(probabilities=PROBABILITIES, advantage=st.floats(-5, 5).filter(lambda a: abs(a) > 1e-3))
def test_on_policy_all_have_the_plain_policy_gradient(name: str, probabilities: list[float], advantage: float) -> None:
    inputs = inputs_of([probabilities], [probabilities], [advantage])
    inputs = replace(inputs, top_policy=top_of(inputs.log_probs), top_rollout=top_of(inputs.rollout))
    found = lost(inputs, EVERY[name])
    (gradient,) = torch.autograd.grad(found.values.sum(), inputs.log_probs)
    assert gradient.tolist() == [pytest.approx([-advantage] * 3, rel=1e-9)]
    assert not found.held_back.any()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e4])
def test_garbage_behind_the_mask_leaks_nowhere(name: str, garbage: float) -> None:
    weight = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    new = torch.stack([-1.0 * weight, garbage * weight])[None]
    clean = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, False]])
    top = torch.zeros(1, 2, 3, dtype=torch.float64)
    for frozen in (clean, torch.tensor([[-1.0, garbage]], dtype=torch.float64)):
        advantages = torch.tensor([2.0], dtype=torch.float64)
        found = lost(LossInputs(new, frozen, frozen, advantages, mask, top, top), EVERY[name])
        assert found.values[0, 1] == 0 and not found.held_back.any()
        (gradient,) = torch.autograd.grad(found.values.sum(), new, retain_graph=True)
        assert gradient.tolist() == [[pytest.approx(-2.0), 0.0]]


@pytest.mark.parametrize("name", EVERY)
@given(
    pi=PROBABILITIES,
    mu=PROBABILITIES,
    advantage=st.floats(-3, 3),
    masked=st.lists(st.booleans(), min_size=3, max_size=3).filter(any),
    garbage=st.floats(allow_nan=True, allow_infinity=True),
)
def test_what_is_masked_changes_nothing_off_policy_either(
    name: str, pi: list[float], mu: list[float], advantage: float, masked: list[bool], garbage: float
) -> None:
    """Any branch, any sign of A: values, slopes and what is held back are those of clean numbers behind the mask."""
    mask = ~torch.tensor([masked])
    outcomes = []
    for behind in (-1.0, garbage):
        inputs = inputs_of([pi], [mu], [advantage])
        new, frozen = (torch.where(mask, t.detach(), behind) for t in (inputs.log_probs, inputs.rollout))
        top_mu, top_pi = (torch.where(mask[..., None], top_of(t), behind) for t in (inputs.rollout, inputs.log_probs))
        new.requires_grad_()
        found = lost(LossInputs(new, frozen, frozen, inputs.advantages, mask, top_pi, top_mu), EVERY[name])
        (gradient,) = torch.autograd.grad(found.values.sum(), new, allow_unused=True)
        assert not found.values[~mask].any() and not found.held_back[~mask].any() and not gradient[~mask].any()
        outcomes.append([found.values.tolist(), gradient.tolist(), found.held_back.tolist()])
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("name", EVERY)
def test_a_sequence_is_its_own_whatever_stands_beside_it(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pi, mu = (torch.rand(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    inputs = inputs_of(pi.tolist(), mu.tolist(), [1.0, -0.5, 0.0, 2.0, -2.0])
    inputs = replace(inputs, top_policy=top_of(inputs.log_probs), top_rollout=top_of(inputs.rollout))
    whole = lost(inputs, EVERY[name])
    for b in range(5):
        fields = ("log_probs", "old", "rollout", "advantages", "mask", "top_policy", "top_rollout")
        alone = lost(LossInputs(*(getattr(inputs, f)[b : b + 1] for f in fields)), EVERY[name])
        assert torch.equal(alone.values[0], whole.values[b])
        assert torch.equal(alone.held_back[0], whole.held_back[b])


@pytest.mark.parametrize("name", EVERY)
@given(pi=PROBABILITIES, mu=PROBABILITIES, advantage=st.floats(-3, 3).filter(lambda a: abs(a) > 1e-3))
def test_factors_are_on_the_advantage_of_each_token(
    name: str, pi: list[float], mu: list[float], advantage: float
) -> None:
    """As if each token had that advantage: the losses scale with it, and which tokens are held back stays."""
    factors = torch.tensor([[0.1, 1.0, 2.0]], dtype=torch.float64)
    plain = inputs_of([pi], [mu], [advantage])
    plain = replace(plain, top_policy=top_of(plain.log_probs), top_rollout=top_of(plain.rollout))
    found, one = (lost(inputs, EVERY[name]) for inputs in (replace(plain, factors=factors), plain))
    torch.testing.assert_close(found.values, one.values * factors)
    assert torch.equal(found.held_back, one.held_back)


@pytest.mark.parametrize("name", EVERY)
def test_frozen_log_probs_are_constants(name: str) -> None:
    frozen = torch.tensor([[0.5]]).log().requires_grad_()
    new = torch.tensor([[0.51]]).log().requires_grad_()
    top = torch.tensor([[[0.5, 0.3, 0.2]]]).log().requires_grad_()
    inputs = LossInputs(new, frozen, frozen, torch.tensor([1.0]), torch.tensor([[True]]), top, top)
    lost(inputs, EVERY[name]).values.sum().backward()
    assert frozen.grad is None and top.grad is None and new.grad is not None


OBJECTIVES: dict[str, Callable[[float, float], float]] = {
    "clip": lambda r, a: min(r * a, min(max(r, 0.8), 1.2) * a),
    "clip_higher": lambda r, a: min(r * a, min(max(r, 0.8), 1.28) * a),
    "dual_clip": lambda r, a: max(min(r * a, min(max(r, 0.8), 1.2) * a), 3 * a if a < 0 else -1e9),
    "sapo": lambda r, a: 4 / (t := 1.0 if a > 0 else 1.05) / (1 + exp(-t * (r - 1))) * a,
    "reinforce": lambda r, a: r * a,
}
"""What is maximised, of ratio and advantage; the other losses are made for their gradients, given by hand above."""


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_equal_central_differences(name: str) -> None:
    mu, step = 0.1, 1e-6
    for ratio in (0.3, 0.75, 0.95, 1.1, 1.25, 1.5, 4.0):
        for advantage in (1.3, -0.7):
            up, down = (OBJECTIVES[name](ratio * exp(sign * step), advantage) for sign in (1, -1))
            gradient = by_hand(EVERY[name], mu * ratio, mu, advantage)[1]
            assert gradient == pytest.approx(-(up - down) / (2 * step), abs=1e-6)


@given(st.integers(0, 2**31), st.integers(3, 12), st.integers(1, 11))
@settings(max_examples=60)
def test_coarser_views_of_two_distributions_are_never_farther_apart(seed: int, tokens: int, kept: int) -> None:
    """DPPO's binary divergence ≤ its top-K ≤ the exact one, total variation and KL."""
    generator = torch.Generator().manual_seed(seed)
    log_mu, log_pi = (
        (4 * torch.randn(tokens, generator=generator, dtype=torch.float64)).log_softmax(-1) for _ in range(2)
    )
    order = log_mu.argsort(descending=True)

    def merged(log_p: Tensor, first: Tensor) -> Tensor:
        rest = torch.ones(tokens, dtype=torch.bool)
        rest[first] = False
        return torch.cat([log_p[first], log_p[rest].logsumexp(0, keepdim=True)])

    top = order[: min(kept, tokens - 1)]
    sampled = top[-1:]
    for measure in (total_variation, kl_divergence):
        binary, top_k, exact = (
            measure(merged(log_mu, sampled), merged(log_pi, sampled)),
            measure(merged(log_mu, top), merged(log_pi, top)),
            measure(log_mu, log_pi),
        )
        assert binary <= top_k + 1e-12
        assert top_k <= exact + 1e-9  # KL counts what is below 1e-12 as that


@given(st.integers(0, 2**31), st.integers(4, 12), st.integers(1, 3))
@settings(max_examples=60)
def test_so_are_the_divergences_that_dppo_computes(seed: int, tokens: int, kept: int) -> None:
    """From what the engine reports: the K most likely tokens, the sampled one in the last one's place if need be."""
    generator = torch.Generator().manual_seed(seed)
    log_mu, log_pi = (
        (3 * torch.randn(1, tokens, generator=generator, dtype=torch.float64)).log_softmax(-1) for _ in range(2)
    )
    sampled = torch.randint(tokens, (1,), generator=generator)
    ids = top_tokens(log_mu, sampled, kept)
    inputs = LossInputs(
        *(log_p.gather(-1, sampled[:, None]) for log_p in (log_pi, log_mu, log_mu)),
        advantages=torch.ones(1),
        mask=torch.ones(1, 1, dtype=torch.bool),
        top_policy=kept_and_rest(log_pi, ids)[None],
        top_rollout=kept_and_rest(log_mu, ids)[None],
    )
    for kind, measure in (("tv", total_variation), ("kl", kl_divergence)):
        binary, top_k = (
            token_shift(inputs, inputs.rollout, PARSE.validate_python(EVERY[f"dppo_{view}_{kind}"])).item()
            for view in ("binary", "top_k")
        )
        assert 0 <= binary <= top_k + 1e-9
        assert top_k <= measure(log_mu, log_pi).item() + 1e-9
