"""Every branch of every policy loss. Numbers are worked out in the comment beside them; N = 8 tokens in the update."""

from collections.abc import Callable
from dataclasses import replace
from math import exp, log
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from ral_system.algorithms.distillation import kept_and_rest, top_tokens
from ral_system.algorithms.policy_losses.dppo import kl_divergence, token_shift, total_variation
from ral_system.algorithms.policy_losses.inputs import LossInputs, TokenLoss
from ral_system.config.policy_loss import DppoLossConfig, PolicyLossConfig
from ral_system.registry import POLICY_LOSSES

CLIP = {"name": "clip", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
DPPO = {"name": "dppo", "divergence": "binary_tv", "delta": 0.15, "top_k": 2, "anchor": "rollout", "max_ratio": 20.0}
EVERY: dict[str, dict[str, Any]] = {
    "clip": CLIP,
    "clip_higher": CLIP | {"clip_high": 0.28},
    "dual_clip": CLIP | {"dual_clip": 3.0},
    "dppo_binary_tv": DPPO,
    "dppo_binary_kl": DPPO | {"divergence": "binary_kl", "delta": 0.05},
    "dppo_top_k_tv": DPPO | {"divergence": "top_k_tv"},
    "dppo_top_k_kl": DPPO | {"divergence": "top_k_kl", "delta": 0.05},
    "dppo_old": DPPO | {"anchor": "old"},
    "gspo": {"name": "gspo", "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"name": "cispo", "clip_low": 1.0, "clip_high": 4.0},
    "sapo": {"name": "sapo", "tau_positive": 1.0, "tau_negative": 1.05},
    "reinforce": {"name": "reinforce", "ratio": True},
    "reinforce_plain": {"name": "reinforce", "ratio": False},
}
PARSE: TypeAdapter[Any] = TypeAdapter(PolicyLossConfig)


def lost(inputs: LossInputs, config: dict[str, Any]) -> TokenLoss:
    parsed = PARSE.validate_python(config)
    return POLICY_LOSSES.get(parsed.name).loss(inputs, parsed)


def inputs_of(pi: list[list[float]], mu: list[list[float]], advantages: list[float], **more: Any) -> LossInputs:
    """From probabilities, pi differentiable; pi_old = mu unless given."""
    log_mu = torch.tensor(mu, dtype=torch.float64).log()
    found = LossInputs(
        log_probs=torch.tensor(pi, dtype=torch.float64).log().requires_grad_(),
        old=log_mu,
        rollout=log_mu,
        advantages=torch.tensor(advantages, dtype=torch.float64),
        mask=torch.ones(len(pi), len(pi[0]), dtype=torch.bool),
    )
    return replace(found, **more)


def by_hand(config: dict[str, Any], pi: float, mu: float, advantage: float, **more: Any) -> tuple[float, float, bool]:
    """Value, gradient with respect to log pi, and whether it is held back, of one token."""
    inputs = inputs_of([[pi]], [[mu]], [advantage], **more)
    found = lost(inputs, config)
    gradient = torch.zeros(())
    if found.values.requires_grad:
        (gradient,) = torch.autograd.grad(found.values.sum(), inputs.log_probs)
    assert not found.held_back.requires_grad
    return found.values.item(), gradient.item(), bool(found.held_back)


@pytest.mark.parametrize(
    ("config", "ratio", "advantage", "objective", "slope"),
    [
        # min(r A, clip(r, 0.8, 1.2) A); slope r A where the free branch counts, else 0
        ({}, 1.5, 2.0, 2.4, 0.0),  # min(3.0, 1.2 · 2): a good token is 1.5 times as likely already
        ({}, 0.5, 2.0, 1.0, 1.0),  # min(1.0, 0.8 · 2): a good token has become rarer, pulled up
        ({}, 1.5, -2.0, -3.0, -3.0),  # min(-3.0, -2.4): a bad token has become likelier, pushed down
        ({}, 0.5, -2.0, -1.6, 0.0),  # min(-1.0, -1.6): a bad token is halved already
        ({}, 1.1, 2.0, 2.2, 2.2),
        ({}, 0.9, -2.0, -1.8, -1.8),
        ({}, 1.5, 0.0, 0.0, 0.0),
        # clip-higher: up to 1.28
        ({"clip_high": 0.28}, 1.25, 2.0, 2.5, 2.5),
        ({"clip_high": 0.28}, 1.5, 2.0, 2.56, 0.0),
        ({"clip_high": 0.28}, 0.5, -2.0, -1.6, 0.0),
        # dual clip: at least 3 A where A < 0
        ({"dual_clip": 3.0}, 5.0, -2.0, -6.0, 0.0),  # max(-10, -6)
        ({"dual_clip": 3.0}, 2.5, -2.0, -5.0, -5.0),  # max(-5, -6)
        ({"dual_clip": 3.0}, 5.0, 2.0, 2.4, 0.0),  # A > 0: the ordinary clip
        ({"dual_clip": 3.0}, 0.5, -2.0, -1.6, 0.0),
    ],
)
def test_clip(config: dict[str, Any], ratio: float, advantage: float, objective: float, slope: float) -> None:
    value, gradient, held_back = by_hand(CLIP | config, 0.1 * ratio, 0.1, advantage)
    assert value == pytest.approx(-objective)
    assert gradient == pytest.approx(-slope)
    assert held_back == (slope == 0 and advantage != 0)


@pytest.mark.parametrize(
    ("divergence", "pi", "mu", "advantage", "held_back"),
    [
        # |mu - pi| against 0.15
        ("binary_tv", 0.5, 0.3, 1.0, True),  # A > 0, r > 1, moved 0.2
        ("binary_tv", 0.5, 0.3, -1.0, False),  # moved the wrong way for A < 0: pushed back
        ("binary_tv", 0.3, 0.5, -1.0, True),
        ("binary_tv", 0.3, 0.5, 1.0, False),
        ("binary_tv", 0.4, 0.3, 1.0, False),  # moved 0.1 only, though r = 1.33
        ("binary_tv", 0.01, 0.001, 1.0, False),  # a rare token, r = 10: hardly any mass moved
        # mu ln(mu/pi) + (1-mu) ln((1-mu)/(1-pi)) against 0.05: 0.3 ln 0.6 + 0.7 ln 1.4 = -0.15325 + 0.23553 = 0.0823
        ("binary_kl", 0.5, 0.3, 1.0, True),
        ("binary_kl", 0.5, 0.3, -1.0, False),
        # 0.3 ln 0.75 + 0.7 ln (0.7/0.6) = -0.08630 + 0.10791 = 0.0216
        ("binary_kl", 0.4, 0.3, 1.0, False),
        ("binary_kl", 0.3, 0.5, -1.0, True),  # 0.5 ln (5/3) + 0.5 ln (5/7) = 0.25541 - 0.16824 = 0.0872
    ],
)
def test_dppo_binary(divergence: str, pi: float, mu: float, advantage: float, held_back: bool) -> None:
    config = EVERY[f"dppo_{divergence}"]
    value, gradient, found = by_hand(config, pi, mu, advantage)
    assert found == held_back
    ratio = pi / mu
    assert value == (0.0 if held_back else pytest.approx(-ratio * advantage * log(pi)))
    assert gradient == (0.0 if held_back else pytest.approx(-ratio * advantage))


@pytest.mark.parametrize(
    ("divergence", "top_mu", "top_pi", "held_back"),
    [
        # the sampled token went 0.3 → 0.35; of the other 0.7, token b went 0.5 → 0.3 and the rest 0.2 → 0.35
        # TV: (0.05 + 0.2 + 0.15) / 2 = 0.2 > 0.15, where the binary one is 0.05
        ("top_k_tv", (0.3, 0.5, 0.2), (0.35, 0.3, 0.35), True),
        ("top_k_tv", (0.3, 0.5, 0.2), (0.35, 0.45, 0.2), False),  # (0.05 + 0.05 + 0) / 2
        # KL: 0.3 ln (0.3/0.35) + 0.5 ln (0.5/0.3) + 0.2 ln (0.2/0.35) = -0.04625 + 0.25541 - 0.11192 = 0.0972
        ("top_k_kl", (0.3, 0.5, 0.2), (0.35, 0.3, 0.35), True),
        ("top_k_kl", (0.3, 0.5, 0.2), (0.35, 0.45, 0.2), False),  # -0.04625 + 0.05268 + 0 = 0.0064
    ],
)
def test_dppo_top_k(divergence: str, top_mu: tuple[float, ...], top_pi: tuple[float, ...], held_back: bool) -> None:
    top = {
        "top_rollout": torch.tensor([[top_mu]], dtype=torch.float64).log(),
        "top_policy": torch.tensor([[top_pi]], dtype=torch.float64).log(),
    }
    value, gradient, found = by_hand(EVERY[f"dppo_{divergence}"], top_pi[0], top_mu[0], 2.0, **top)
    assert found == held_back
    ratio = top_pi[0] / top_mu[0]
    assert gradient == (0.0 if held_back else pytest.approx(-2 * ratio))
    assert value == (0.0 if held_back else pytest.approx(-2 * ratio * log(top_pi[0])))


def test_dppo_compares_with_the_rollout_unless_told_otherwise() -> None:
    # mu = 0.3, recomputed 0.5, now 0.5: moved 0.2 from the rollout and not at all from the recomputed
    old = {"old": torch.tensor([[0.5]], dtype=torch.float64).log()}
    assert by_hand(EVERY["dppo_binary_tv"], 0.5, 0.3, 1.0, **old)[2]
    value, gradient, held_back = by_hand(EVERY["dppo_old"], 0.5, 0.3, 1.0, **old)
    assert (gradient, held_back) == (pytest.approx(-1.0), False)
    assert value == pytest.approx(-log(0.5))


def test_dppo_s_weight_is_bounded() -> None:
    value, gradient, _ = by_hand(DPPO | {"max_ratio": 5.0}, 0.01, 0.001, 2.0)  # r = 10
    assert gradient == pytest.approx(-5 * 2)
    assert value == pytest.approx(-5 * 2 * log(0.01))


@pytest.mark.parametrize("p", [0.0, 1e-30, 1.0])
def test_dppo_s_divergences_are_finite_at_the_ends(p: float) -> None:
    log_p = torch.tensor([[p]], dtype=torch.float64).log()
    for kind in ("binary_tv", "binary_kl"):
        config = DppoLossConfig.model_validate(DPPO | {"divergence": kind})
        for other in (0.0, 0.5, 1.0):
            inputs = inputs_of([[other]], [[0.5]], [1.0])
            assert token_shift(inputs, log_p, config).isfinite().all()


def test_gspo_has_one_ratio_for_a_sequence() -> None:
    # ratios 1.0004 and 1.0001: their geometric mean is about 1.00025, inside of 1 + 4e-4
    sequence = (1.0004 * 1.0001) ** 0.5
    inputs = inputs_of([[0.10004, 0.20002]], [[0.1, 0.2]], [2.0])
    found = lost(inputs, EVERY["gspo"])
    assert found.values.tolist() == [pytest.approx([-2 * sequence] * 2, rel=1e-12)]
    (gradient,) = torch.autograd.grad(found.values.sum() / 2, inputs.log_probs)
    # the mean over tokens of s A ∇ ln pi, and no other way in through s
    assert gradient.tolist() == [pytest.approx([-2 * sequence / 2] * 2, rel=1e-12)]


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "held_back"),
    [
        (1.001, 2.0, 2 * 1.0004, True),
        (0.999, 2.0, 2 * 0.999, False),
        (1.001, -2.0, -2 * 1.001, False),
        (0.999, -2.0, -2 * 0.9997, True),
    ],
)
def test_gspo_clips_whole_sequences(ratio: float, advantage: float, objective: float, held_back: bool) -> None:
    inputs = inputs_of([[0.1 * ratio, 0.2 * ratio]], [[0.1, 0.2]], [advantage])
    found = lost(inputs, EVERY["gspo"])
    assert found.values.tolist() == [pytest.approx([-objective] * 2)]
    assert found.held_back.tolist() == [[held_back] * 2]
    (gradient,) = torch.autograd.grad(found.values.sum(), inputs.log_probs)
    assert gradient.tolist() == [pytest.approx([0.0 if held_back else -ratio * advantage] * 2)]


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"),
    [(8.0, 2.0, 5.0), (8.0, -2.0, 5.0), (0.01, 2.0, 0.01), (0.01, -2.0, 0.01), (1.5, 2.0, 1.5)],
)
def test_cispo_bounds_the_weight_and_never_stops_the_gradient(ratio: float, advantage: float, weight: float) -> None:
    value, gradient, held_back = by_hand(EVERY["cispo"], 0.1 * ratio, 0.1, advantage)
    assert value == pytest.approx(-weight * advantage * log(0.1 * ratio))
    assert gradient == pytest.approx(-weight * advantage)
    assert not held_back


def test_cispo_with_a_lower_bound() -> None:
    _, gradient, _ = by_hand(EVERY["cispo"] | {"clip_low": 0.4}, 0.001, 0.1, 2.0)
    assert gradient == pytest.approx(-0.6 * 2)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # -(4 / τ) σ(τ (r - 1)) A; its slope in ln pi is -4 σ (1 - σ) r A. τ is 1 where A > 0, else 1.05
        (2.0, 2.0, -5.848469, -3.145791),  # σ(1) = 0.731059: -4 · 0.731059 · 2, and -4 · 0.196612 · 2 · 2
        (2.0, -2.0, 5.643999, 3.072439),  # σ(1.05) = 0.740775: 3.809524 · 0.740775 · 2, and 4 · 0.192027 · 2 · 2
        (0.5, 2.0, -3.020325, -0.940015),  # σ(-0.5) = 0.377541: -4 · 0.377541 · 2, and -4 · 0.235004 · 0.5 · 2
        (0.5, -2.0, 2.831877, 0.934140),  # σ(-0.525) = 0.371684: 3.809524 · 0.371684 · 2, and 4 · 0.233535 · 0.5 · 2
    ],
)
def test_sapo_gates_softly(ratio: float, advantage: float, loss: float, slope: float) -> None:
    value, gradient, held_back = by_hand(EVERY["sapo"], 0.1 * ratio, 0.1, advantage)
    assert value == pytest.approx(loss, abs=3e-6)
    assert gradient == pytest.approx(slope, abs=3e-6)
    assert not held_back


def test_reinforce() -> None:
    assert by_hand(EVERY["reinforce"], 0.3, 0.1, 2.0) == (pytest.approx(-6.0), pytest.approx(-6.0), False)
    assert by_hand(EVERY["reinforce_plain"], 0.3, 0.1, 2.0) == (pytest.approx(-2 * log(0.3)), -2.0, False)


# --- what holds for all -----------------------------------------------------------------------------------------------


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
