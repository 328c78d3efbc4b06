"""The objectives on made-up outputs, against loops over tokens and against dense float64 autograd."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ral_system.algorithms.token_read import TokenRead
from ral_system.config.algorithm import AlgorithmConfig
from ral_system.models.policy import PolicyOutput
from ral_system.training.supervised import supervised_objective
from ral_system.types import SampleScores
from tests.unit.training.objectives import (
    ADVANTAGES,
    COUNTS,
    PROMPTS,
    READ,
    RESPONSES,
    Case,
    objective,
    slow_divergence,
)


@pytest.fixture
def algorithm(make_config: Callable) -> Callable[..., AlgorithmConfig]:
    def made(weight: float, reduction: str = "token_mean", beta: float = 0.3) -> AlgorithmConfig:
        return make_config(
            f"algorithm.attention.weight={weight}",
            f"algorithm.attention.reduction={reduction}",
            f"algorithm.kl.coefficient={beta}",
            "algorithm.correction.kind=none",
        ).algorithm

    return made


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_loss_and_metrics_equal_loops_over_tokens(algorithm: Callable[..., AlgorithmConfig], reduction: str) -> None:
    case = Case()
    output = case.output()
    found = objective(case, algorithm(2.0, reduction), output, reference=case.reference)
    rows = [torch.cat(list(of_sample.policies(0))) for of_sample in output.attention[READ]]
    surrogate = kl = attention = clipped = near_old = 0.0
    jsd = {"positive": 0.0, "negative": 0.0}
    gaps = []
    for b, t in case.tokens():
        sample, a, new = case.samples[b], ADVANTAGES[b], case.log_probs[b, t].item()
        old, ref = (float(s[sample.id].log_probs[t]) for s in (case.behaviour, case.reference))
        r = math.exp(new - old)
        plain, held = r * a, min(max(r, 0.8), 1.2) * a
        surrogate += min(plain, held)
        clipped += held < plain
        kl += math.exp(ref - new) - (ref - new) - 1
        near_old += math.exp(new - old) - (new - old) - 1  # KL(old ‖ pi), whose tokens they are
        old_row = case.behaviour[sample.id].attention[0].values[t]
        divergence = slow_divergence(rows[b][t].double().tolist(), old_row.astype(float).tolist())
        attention += a * divergence / (20 if reduction == "token_mean" else 6 * RESPONSES[b])
        jsd["positive" if a > 0 else "negative"] += divergence
        gaps.append(abs(old - sample.rollout_log_probs[t]))
    assert clipped > 0
    assert found.attention is not None
    assert found.loss.item() == pytest.approx(-surrogate / 20 + 0.3 * kl / 20, rel=1e-5)
    assert found.attention.item() == pytest.approx(2.0 * attention, rel=1e-5)
    sums = {name: value.item() for name, value in found.sums.items()}
    assert sums == pytest.approx(
        {
            "policy/loss": -surrogate,
            "policy/clip_fraction": clipped,
            "correction/weight": 8,
            "correction/outside": 0,
            "policy/entropy": case.entropy.sum().item(),
            "policy/approximate_kl_old": near_old,
            "policy/kl": kl,
            "attention/loss": attention * 20,
            "gate/log_prob_diff_mean": sum(gaps),
            "gate/log_prob_outlier_share": 0,
        },
        rel=1e-5,
    )
    for sign in ("positive", "negative"):
        total, weight = found.weighted[f"attention/divergence_{sign}"]
        assert (total.item(), weight.item()) == (pytest.approx(jsd[sign], rel=1e-5), 4)
    assert found.maxima["gate/log_prob_diff_max"].item() == pytest.approx(max(gaps))
    assert not any(v.requires_grad for v in (*found.sums.values(), *found.maxima.values()))


def test_tokens_that_the_engines_disagree_on_have_no_part_in_the_policy_loss(
    algorithm: Callable[..., AlgorithmConfig],
) -> None:
    case = Case()
    gaps = {
        (b, t): abs(float(case.behaviour[case.samples[b].id].log_probs[t]) - case.samples[b].rollout_log_probs[t])
        for b, t in case.tokens()
    }
    largest = sorted(gaps.values())[-3]  # two tokens are beyond it
    kept = [where for where, gap in gaps.items() if gap <= largest]
    log_probs = case.log_probs.clone().requires_grad_()
    found = objective(case, algorithm(0.0, "token_mean"), case.output(log_probs), largest_gap=largest)
    expected = torch.zeros(())
    for b, t in kept:
        ratio = (log_probs[b, t] - float(case.behaviour[case.samples[b].id].log_probs[t])).exp()
        expected = expected - torch.minimum(ratio * ADVANTAGES[b], ratio.clamp(0.8, 1.2) * ADVANTAGES[b]) / 20
    assert len(kept) == len(gaps) - 2
    assert found.sums["gate/log_prob_outlier_share"] == 2
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradient, slow = (torch.autograd.grad(loss, log_probs)[0] for loss in (found.loss, expected))
    torch.testing.assert_close(gradient, slow, rtol=1e-5, atol=1e-7)


def test_statistics_of_the_old_rows_are_split_by_the_sign_of_the_advantage(
    algorithm: Callable[..., AlgorithmConfig],
) -> None:
    case = Case()
    found = objective(case, algorithm(2.0)).weighted
    mass = [float(case.behaviour[s.id].row_statistics["visual_mass"].sum()) for s in case.samples]
    for suffix, chosen in (("", (0, 1, 2)), ("_positive", (0,)), ("_negative", (1, 2))):
        total, weight = found[f"attention/visual_mass{suffix}"]
        assert total.item() == pytest.approx(sum(mass[b] for b in chosen), rel=1e-5)
        assert weight.item() == sum(RESPONSES[b] for b in chosen)
    assert found["attention/image_3_mass"][1].item() == 0  # no sample has a fourth picture


def test_a_record_of_other_weights_is_refused(algorithm: Callable[..., AlgorithmConfig]) -> None:
    case = Case()
    scores = case.behaviour["s2"]
    case.behaviour["s2"] = replace(scores, attention=(replace(scores.attention[0], version=4),))
    with pytest.raises(ValueError, match="sample s2: target is a record of weights 4, but version=0"):
        objective(case, algorithm(1.0))


def test_without_reference_or_attention_weight_their_terms_are_gone(algorithm: Callable[..., AlgorithmConfig]) -> None:
    case = Case()
    found = objective(case, algorithm(0.0))
    assert found.loss.item() == pytest.approx(found.sums["policy/loss"].item() / 20, rel=1e-6)
    assert found.attention is None
    assert "policy/kl" not in found.sums
    assert "attention/loss" not in found.sums
    assert found.weighted["attention/divergence_positive"][0] > 0  # still measured


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_attention_gradient_equals_dense_float64_autograd(
    algorithm: Callable[..., AlgorithmConfig], reduction: str
) -> None:
    case = Case()
    heads = [(q.clone().requires_grad_(), k.clone().requires_grad_()) for q, k in case.heads]
    output = case.output(heads=heads)
    term = objective(case, algorithm(2.0, reduction), output).attention
    assert term is not None
    term.backward()

    slow = [(q.double().requires_grad_(), k.double().requires_grad_()) for q, k in case.heads]
    loss = torch.zeros((), dtype=torch.float64)
    for b, (query, key) in enumerate(slow):
        old = case.behaviour[case.samples[b].id].attention[0].values
        for t in range(RESPONSES[b]):
            row = PROMPTS[b] + t
            heads_alpha = [torch.softmax(0.7 * key[: row + 1, h // 2] @ query[row, h], 0) for h in range(4)]
            alpha = torch.stack(heads_alpha).mean(0)
            p = alpha[:row] / (1 - alpha[row])
            q = torch.tensor(old[t, :row], dtype=torch.float64)  # type: ignore[index]
            m = (p + q) / 2
            divergence = 0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum()
            loss = loss + 2.0 * ADVANTAGES[b] * divergence / (20 if reduction == "token_mean" else 6 * RESPONSES[b])
    loss.backward()
    for (query, key), (slow_query, slow_key) in zip(heads, slow, strict=True):
        for found, expected in ((query.grad, slow_query.grad), (key.grad, slow_key.grad)):
            assert expected is not None and expected.abs().max() > 1e-4
            assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-7)  # type: ignore[union-attr]


def test_padding_of_the_responses_does_not_change_shares(algorithm: Callable[..., AlgorithmConfig]) -> None:
    case = Case()
    wider = torch.nn.functional.pad(case.mask, (0, 5))
    batch = replace(case.batch, response_ids=torch.zeros(3, 9, dtype=torch.int64), response_mask=wider)
    plain = case.output()
    padded = PolicyOutput(
        torch.nn.functional.pad(plain.log_probs, (0, 5)),
        torch.nn.functional.pad(plain.entropy, (0, 5)),
        torch.nn.functional.pad(plain.top1, (0, 5)),
        plain.attention,
        plain.tokens,
    )
    for reduction in ("token_mean", "sequence_mean"):
        settings = algorithm(2.0, reduction)
        a = objective(case, settings, plain, reference=case.reference)
        b = objective(case, settings, padded, batch, reference=case.reference)
        assert b.loss.item() == pytest.approx(a.loss.item(), rel=1e-6)
        assert b.attention.item() == pytest.approx(a.attention.item(), rel=1e-6)  # type: ignore[union-attr]
        assert {k: v.item() for k, v in b.sums.items()} == pytest.approx({k: v.item() for k, v in a.sums.items()})


def test_a_missing_attention_record_names_the_sample(algorithm: Callable[..., AlgorithmConfig]) -> None:
    case = Case()
    case.behaviour["s1"] = SampleScores(case.behaviour["s1"].log_probs)
    with pytest.raises(AssertionError, match="sample s1 has no attention record"):
        objective(case, algorithm(1.0))


def test_the_supervised_objective_is_cross_entropy_per_token() -> None:
    case = Case()
    log_probs = case.log_probs.clone().requires_grad_()
    top1 = torch.tensor([[True, False, True, True], [True, False, False, False], [False] * 4]) & case.mask
    output = PolicyOutput(log_probs, case.entropy, top1, {}, case.values(TokenRead()))
    found = supervised_objective(output, (), case.batch, COUNTS)
    nll = -sum(case.log_probs[b, t].item() for b, t in case.tokens())
    assert found.loss.item() == pytest.approx(nll / 20, rel=1e-6)
    assert {k: v.item() for k, v in found.sums.items()} == pytest.approx(
        {"supervised/loss": nll, "supervised/token_accuracy": 4.0}, rel=1e-6
    )
    found.loss.backward()
    assert log_probs.grad is not None
    assert torch.equal(log_probs.grad, torch.full((3, 4), -1 / 20))
