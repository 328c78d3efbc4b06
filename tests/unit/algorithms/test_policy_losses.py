"""Every branch of every policy loss. Numbers are worked out in the comment beside them; N = 8 tokens in the update."""

from math import log
from typing import Any

import pytest
import torch

from ral_system.algorithms.policy_losses.dppo import token_shift
from ral_system.config.policy_loss import DppoLossConfig
from tests.unit.algorithms.losses import CLIP, DPPO, EVERY, by_hand, inputs_of, lost


@pytest.mark.parametrize(
    ("config", "ratio", "advantage", "objective", "slope"),
    [
        # min(r A, clip(r, 0.8, 1.2) A); slope r A where the free branch counts, else 0
        ({}, 1.5, 2.0, 2.4, 0.0),  # min(3.0, 1.2 · 2): a good token is 1.5 times as likely already
        ({}, 0.5, 2.0, 1.0, 1.0),  # min(1.0, 0.8 · 2): a good token has become rarer, pulled up
        ({}, 1.5, -2.0, -3.0, -3.0),  # min(-3.0, -2.4): a bad token has become more likely, pushed down
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
