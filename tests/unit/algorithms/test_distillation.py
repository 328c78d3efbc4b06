"""Distillation divergences against slow code, by hand and at the edges; kept tokens and the rest."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ral_system.algorithms.distillation import TOKEN_DIVERGENCES, kept_and_rest, token_divergence, top_tokens

CASES = [("reverse_kl", 0.5), ("forward_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]


def logits(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


def slow_divergence(p: list[float], q: list[float], kind: str, beta: float) -> float:
    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    m = [beta * y + (1 - beta) * x for x, y in zip(p, q, strict=True)]
    return {
        "reverse_kl": lambda: kl(p, q),
        "forward_kl": lambda: kl(q, p),
        "jsd": lambda: beta * kl(q, m) + (1 - beta) * kl(p, m),
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "beta", "expected"),
    [
        # student p = (1/2, 1/2), teacher q = (1/4, 3/4)
        ("reverse_kl", 0.5, 0.5 * math.log(2) + 0.5 * math.log(2 / 3)),
        ("forward_kl", 0.5, 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)),
        # m = 0.2 q + 0.8 p = (0.45, 0.55)
        (
            "jsd",
            0.2,
            0.2 * (0.25 * math.log(0.25 / 0.45) + 0.75 * math.log(0.75 / 0.55))
            + 0.8 * (0.5 * math.log(0.5 / 0.45) + 0.5 * math.log(0.5 / 0.55)),
        ),
    ],
)
def test_by_hand(kind: str, beta: float, expected: float) -> None:
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert token_divergence(p, q, kind, beta).item() == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "beta"), CASES)
@pytest.mark.parametrize("tokens", [1, 2, 37])
def test_value_and_gradient_equal_slow_code(kind: str, beta: float, tokens: int) -> None:
    student, teacher = logits(1, 4, tokens).requires_grad_(), logits(2, 4, tokens)
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    found = token_divergence(log_p, log_q, kind, beta)  # type: ignore[arg-type]
    rows = zip(log_p.exp().tolist(), log_q.exp().tolist(), strict=True)
    assert found.tolist() == pytest.approx([slow_divergence(p, q, kind, beta) for p, q in rows], rel=1e-9, abs=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), student)

    again = student.detach().requires_grad_()
    p, q = again.softmax(-1), log_q.exp()
    m = beta * q + (1 - beta) * p
    by_definition = {
        "reverse_kl": (p * (p / q).log()).sum(),
        "forward_kl": (q * (q / p).log()).sum(),
        "jsd": (beta * q * (q / m).log() + (1 - beta) * p * (p / m).log()).sum(),
    }[kind]
    (expected,) = torch.autograd.grad(by_definition, again)
    assert torch.allclose(gradient, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("kind", "beta"), CASES)
def test_a_student_that_is_its_teacher_has_value_and_gradient_exactly_zero(kind: str, beta: float) -> None:
    student = logits(3, 50, 301, dtype=torch.float32).requires_grad_()
    banned = student.index_fill(-1, torch.tensor([7, 11]), float("-inf"))
    log_p = banned.log_softmax(-1)
    ids = top_tokens(log_p.detach(), torch.zeros(50, dtype=torch.int64), 16)
    for mine, theirs in ((log_p, log_p.detach()), (kept_and_rest(log_p, ids), kept_and_rest(log_p.detach(), ids))):
        found = token_divergence(mine, theirs, kind, beta)  # type: ignore[arg-type]
        assert not found.any()
        assert not torch.autograd.grad(found.sum(), student, retain_graph=True)[0].any()


@pytest.mark.parametrize(("kind", "beta"), CASES)
def test_near_equality_keeps_its_precision_in_float32(kind: str, beta: float) -> None:
    teacher = logits(4, 20, 100)
    student = teacher + 1e-3 * logits(5, 20, 100)
    exact = token_divergence(student.log_softmax(-1), teacher.log_softmax(-1), kind, beta)  # type: ignore[arg-type]
    found = token_divergence(student.log_softmax(-1).float(), teacher.log_softmax(-1).float(), kind, beta)  # type: ignore[arg-type]
    assert exact.min() > 1e-8
    assert torch.allclose(found.double(), exact, rtol=2e-2, atol=0)


@pytest.mark.parametrize(("kind", "beta"), CASES)
def test_is_finite_for_any_logits(kind: str, beta: float) -> None:
    values = torch.tensor([0.0, 1e-8, 50.0, -50.0, 3e3, -3e3, float("-inf")])
    grid = torch.cartesian_prod(values[:-1], values, values)
    student = grid.repeat_interleave(8, 0).requires_grad_()
    teacher = grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(0))].repeat(8, 1)
    found = token_divergence(student.log_softmax(-1), teacher.log_softmax(-1), kind, beta)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert torch.isfinite(found).all() and (found > -1e-4).all()
    assert torch.isfinite(gradient[student.isfinite()]).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=60)
def test_keeping_fewer_tokens_never_raises_it(seed: int, kept: int) -> None:
    log_p, log_q = logits(seed, 3, 12).log_softmax(-1), logits(seed + 1, 3, 12).log_softmax(-1)
    for kind, beta in CASES:
        whole = token_divergence(log_p, log_q, kind, beta)  # type: ignore[arg-type]
        bounds = []
        for count in (kept, min(12, kept + 1)):
            ids = log_q.topk(count).indices
            bounds.append(token_divergence(kept_and_rest(log_p, ids), kept_and_rest(log_q, ids), kind, beta))  # type: ignore[arg-type]
        assert (bounds[0] <= bounds[1] + 1e-10).all() and (bounds[1] <= whole + 1e-10).all()
        if kept == 12:
            assert torch.allclose(bounds[0], whole, rtol=1e-9)


def test_the_sampled_token_is_among_those_kept() -> None:
    log_q = torch.tensor([[0.5, 0.3, 0.15, 0.05]] * 3).log()
    assert top_tokens(log_q, torch.tensor([0, 3, 2]), 2).tolist() == [[0, 1], [0, 3], [0, 2]]
    assert top_tokens(log_q[:1], torch.tensor([3]), 9).tolist() == [[0, 1, 2, 3]]
    found = kept_and_rest(log_q, torch.tensor([[0, 1], [0, 3], [3, 2]])).exp()
    assert torch.allclose(found, torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.05, 0.45], [0.05, 0.15, 0.8]]))


def test_what_makes_no_sense_is_refused() -> None:
    row = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"kind='mse'; known: reverse_kl, forward_kl, jsd"):
        token_divergence(row, row, "mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"beta=1 must lie between 0 and 1"):
        token_divergence(row, row, "jsd", 1)
    assert set(TOKEN_DIVERGENCES) == {kind for kind, _ in CASES}
