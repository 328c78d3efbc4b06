"""The two distillation terms on made-up outputs, against loops over tokens and float64."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ral_system.algorithms.distillation import kept_and_rest, top_tokens
from ral_system.attention.policy import attention_policy
from ral_system.attention.record import record_attention
from ral_system.config.algorithm import AlgorithmConfig
from ral_system.scoring.scores import merge_teachers
from ral_system.training.token_reads import token_read
from ral_system.types import SampleScores, Scores, TokenRecord
from tests.unit.training.objectives import PROMPTS, READ, RESPONSES, Case, objective, slow_divergence

Algorithm = Callable[..., AlgorithmConfig]


@pytest.fixture
def algorithm(make_config: Callable) -> Algorithm:
    """No reward, no KL, no RAL term: what is left is distillation."""

    def made(*overrides: str) -> AlgorithmConfig:
        return make_config(
            "algorithm.policy_weight=0",
            "algorithm.attention.weight=0",
            "teacher.path=/teacher",
            *(f"algorithm.distillation.{override}" for override in overrides),
        ).algorithm

    return made


def teaching(case: Case, top_k: int | None = None, seed: int = 5) -> Scores:
    """Score the case with a teacher of other weights."""
    g = torch.Generator().manual_seed(seed)
    found = {}
    for sample, p in zip(case.samples, PROMPTS, strict=True):
        query, key = (torch.randn(sample.length, n, 5, generator=g) for n in (4, 2))
        policy = attention_policy(query, key, torch.arange(p, sample.length), scale=0.7)
        record = record_attention([policy], version=0, tokens=sample.length, top_k=None, dtype=torch.float32)
        log_softmax = torch.randn(len(sample.response_token_ids), 7, generator=g).mul(2).log_softmax(-1)
        tokens = TokenRecord(log_softmax.numpy())
        if top_k is not None:
            ids = top_tokens(log_softmax, torch.tensor(sample.response_token_ids), top_k)
            tokens = TokenRecord(kept_and_rest(log_softmax, ids).numpy(), ids.int().numpy())
        found[sample.id] = SampleScores(np.zeros(0, np.float32), (record,), tokens=tokens)
    return found


def slow_tokens(case: Case, records: Scores, top_k: int | None) -> list[float]:
    """KL(student ‖ teacher) of every response token, in loops."""
    found = []
    for sample, rows in zip(case.samples, case.log_softmax.double().exp().split(RESPONSES), strict=True):
        record = records[sample.id].tokens
        assert record is not None
        for t, p in enumerate(rows.tolist()):
            q = np.exp(record.log_probs[t].astype(float)).tolist()
            if record.ids is not None:
                kept = record.ids[t].tolist()
                assert len(kept) == top_k and sample.response_token_ids[t] in kept
                p = [*(p[i] for i in kept), sum(x for i, x in enumerate(p) if i not in kept)]
            found.append(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))
    return found


@pytest.mark.parametrize("top_k", [None, 3])
def test_the_token_term_is_a_mean_over_the_updates_tokens(algorithm: Algorithm, top_k: int | None) -> None:
    case = Case()
    records = teaching(case, top_k)
    found = objective(case, algorithm("tokens.weight=0.7", "tokens.top_k=null"), teaching=records)
    slow = slow_tokens(case, records, top_k)
    assert found.loss.item() == pytest.approx(0.7 * sum(slow) / 20, rel=1e-5)  # 20 tokens in the whole update
    total, weight = found.weighted["distillation/token_divergence"]
    assert (total.item(), weight.item()) == (pytest.approx(sum(slow), rel=1e-5), 8)
    assert "distillation/attention_divergence" not in found.weighted


@pytest.mark.parametrize("reduction", ["sequence_sum", "sequence_mean", "token_mean"])
def test_the_attention_term_weighs_every_row_alike_whatever_the_advantage(algorithm: Algorithm, reduction: str) -> None:
    case = Case()
    records = teaching(case)
    output = case.output()
    rows = [torch.cat(list(of_sample.policies(0))) for of_sample in output.attention[READ]]
    slow, total = 0.0, 0.0
    for b, t in case.tokens():
        theirs = records[case.samples[b].id].attention[0].values[t]
        divergence = slow_divergence(rows[b][t].double().tolist(), theirs.astype(float).tolist())
        total += divergence
        slow += divergence / {"sequence_sum": 6, "sequence_mean": 6 * RESPONSES[b], "token_mean": 20}[reduction]
    settings = algorithm("attention.weight=0.5", f"attention.reduction={reduction}")
    found = objective(case, settings, output, teaching=records)
    assert found.loss.item() == pytest.approx(0.5 * slow, rel=1e-5)
    assert found.weighted["distillation/attention_divergence"][0].item() == pytest.approx(total, rel=1e-5)
    turned = replace(case.batch, advantages=-case.batch.advantages)
    assert torch.equal(objective(case, settings, output, turned, teaching=records).loss, found.loss)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
@pytest.mark.parametrize("top_k", [None, 3])
def test_a_teacher_that_is_the_student_teaches_exactly_nothing(
    algorithm: Algorithm, divergence: str, top_k: int | None
) -> None:
    case = Case()
    heads = [(q.clone().requires_grad_(), k.clone().requires_grad_()) for q, k in case.heads]
    logits = case.log_softmax.clone().requires_grad_()
    log_softmax = logits.log_softmax(-1)
    output = case.output(heads=heads)
    records: Scores = {}
    for sample, rows, log_p in zip(
        case.samples, output.attention[READ], log_softmax.detach().split(RESPONSES), strict=True
    ):
        tokens = TokenRecord(log_p.numpy())
        if top_k is not None:
            ids = top_tokens(log_p, torch.tensor(sample.response_token_ids), top_k)
            tokens = TokenRecord(kept_and_rest(log_p, ids).numpy(), ids.int().numpy())
        record = record_attention(rows.policies(0), version=0, tokens=sample.length, top_k=None, dtype=torch.float32)
        records[sample.id] = SampleScores(np.zeros(0, np.float32), (record,), tokens=tokens)
    settings = algorithm("tokens.weight=1", f"tokens.divergence={divergence}", "attention.weight=1")
    read = token_read(case.samples, records, settings, 7)
    output = replace(output, tokens=case.values(read, log_softmax))
    found = objective(case, settings, output, teaching=records)
    assert found.loss.item() == 0
    found.loss.backward()
    assert not logits.grad.any()  # type: ignore[union-attr]
    assert not any(t.grad.any() for pair in heads for t in pair)  # type: ignore[union-attr]


def test_terms_add_up_and_reach_logits_queries_and_keys(algorithm: Algorithm) -> None:
    case = Case()
    records = teaching(case)
    heads = [(q.clone().requires_grad_(), k.clone().requires_grad_()) for q, k in case.heads]
    logits = case.log_softmax.clone().requires_grad_()

    def loss(*overrides: str) -> torch.Tensor:
        settings = algorithm(*overrides)
        read = token_read(case.samples, records, settings, 7)
        output = case.output(heads=heads, values=case.values(read, logits.log_softmax(-1)))
        return objective(case, settings, output, teaching=records).loss

    both = loss("tokens.weight=0.3", "attention.weight=2")
    assert both.item() == pytest.approx((loss("tokens.weight=0.3") + loss("attention.weight=2")).item(), rel=1e-6)
    both.backward()
    assert logits.grad.any() and all(t.grad.any() for pair in heads for t in pair)  # type: ignore[union-attr]


def test_two_teachers_are_read_as_one() -> None:
    case = Case()
    whole, other = teaching(case), teaching(case, seed=6)
    for_tokens = {id: replace(scores, attention=()) for id, scores in whole.items()}
    for_attention = {id: replace(scores, tokens=None) for id, scores in other.items()}
    merged = merge_teachers((for_tokens, for_attention))
    assert merged.keys() == whole.keys()
    for id, scores in merged.items():
        assert scores.tokens is whole[id].tokens and scores.attention is other[id].attention
    assert merge_teachers(()) == {}


def test_a_teacher_with_another_vocabulary_names_sample_shapes_and_remedy(algorithm: Algorithm) -> None:
    case = Case()
    records = teaching(case)
    wide = TokenRecord(np.zeros((4, 9), np.float32))
    records["s0"] = replace(records["s0"], tokens=wide)
    with pytest.raises(
        ValueError,
        match=r"sample s0: the teacher's distributions are \(4, 9\), the student's \(4, 7\); set .*tokens\.top_k",
    ):
        objective(case, algorithm("tokens.weight=1"), teaching=records)
