import math

import pytest
import torch
from torch import Tensor

from ral_system.attention.policy import attention_policy


def slow_policy(query: list, key: list, rows: list[int], scale: float) -> list[list[float]]:
    """Eq 2 entry by entry: loops over rows, heads and keys, in Python floats."""
    tokens, heads, key_heads = len(query), len(query[0]), len(key[0])
    found = []
    for t in rows:
        alpha = [0.0] * tokens
        for h in range(heads):
            k = h // (heads // key_heads)
            logits = [scale * sum(a * b for a, b in zip(query[t][h], key[i][k], strict=True)) for i in range(t + 1)]
            top = max(logits)
            weights = [math.exp(x - top) for x in logits]
            for i in range(t + 1):
                alpha[i] += weights[i] / sum(weights) / heads
        mass = sum(alpha[:t])
        found.append([alpha[i] / mass if i < t else 0.0 for i in range(tokens)])
    return found


def tensors(
    tokens: int, heads: int, key_heads: int, dim: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * 1000 + heads * 100 + dim)
    return (
        torch.randn(tokens, heads, dim, generator=generator, dtype=torch.float64).mul(1.5).to(dtype),
        torch.randn(tokens, key_heads, dim, generator=generator, dtype=torch.float64).mul(1.5).to(dtype),
    )


SIZES = [  # T, H, K, D, rows
    (1, 1, 1, 1, [0]),
    (2, 2, 1, 3, [1]),
    (7, 4, 2, 5, [0, 3, 6]),
    (13, 7, 1, 33, [12, 2, 2, 11]),  # any order, repeated
    (11, 14, 2, 16, list(range(11))),  # 7 query heads on each key head
    (5, 3, 3, 32, []),
]


@pytest.mark.parametrize(("tokens", "heads", "key_heads", "dim", "rows"), SIZES)
def test_equals_slow_code(tokens: int, heads: int, key_heads: int, dim: int, rows: list[int]) -> None:
    query, key = tensors(tokens, heads, key_heads, dim)
    found = attention_policy(query, key, torch.tensor(rows, dtype=torch.int64), scale=dim**-0.5)
    expected = torch.tensor(slow_policy(query.tolist(), key.tolist(), rows, dim**-0.5), dtype=torch.float64)
    assert found.shape == (len(rows), tokens)
    assert torch.allclose(found, expected.view(len(rows), tokens), rtol=1e-11, atol=1e-15)
    single = attention_policy(query.float(), key.float(), torch.tensor(rows, dtype=torch.int64), scale=dim**-0.5)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), expected.view(len(rows), tokens), atol=1e-6)


def test_by_hand() -> None:
    # scores of row 2 on keys 0, 1, 2: ln 1, ln 2, ln 5, so alpha = 1/8, 2/8, 5/8; without the row itself 1/3, 2/3
    # row 1: ln 1, ln 2: alpha = 1/3, 2/3; without itself all on key 0. Row 0 has nothing before it.
    query = torch.ones(3, 1, 1)
    key = torch.tensor([1.0, 2.0, 5.0]).log().view(3, 1, 1)
    found = attention_policy(query, key, torch.tensor([0, 1, 2]), scale=1.0)
    expected = [[0, 0, 0], [1, 0, 0], [1 / 3, 2 / 3, 0]]
    assert found.tolist() == [pytest.approx(row, rel=1e-6) for row in expected]


def test_heads_are_averaged_before_the_row_itself_is_removed() -> None:
    # row 1 of two heads: alpha = (9/10, 1/10) and (1/10, 9/10): mean 1/2, 1/2, so p(0) = 1 either way; row 2 tells:
    # head 0: (8, 1, 1)/10, head 1: (0, 1, 9)/10 → mean (4, 1, 5)/10 → 4/5, 1/5. Removed first: ((8/9 + 0) / 2, …)
    weights = torch.tensor([[8.0, 1, 1], [1e-30, 1, 9]])
    query = torch.eye(2)[None].expand(3, 2, 2).clone()
    key = weights.log().T[:, None, :].expand(3, 1, 2).clone()  # head h reads coordinate h
    found = attention_policy(query, key, torch.tensor([2]), scale=1.0)
    assert found[0].tolist() == pytest.approx([0.8, 0.2, 0.0], rel=1e-5)


def test_is_the_softmax_row_divided_by_what_it_does_not_keep() -> None:
    query, key = tensors(9, 2, 1, 4)
    rows = torch.arange(1, 9)
    logits = torch.einsum("thd,sd->hts", query, key[:, 0]) * 0.5
    logits += torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1)
    alpha = logits.softmax(-1).mean(0)
    expected = alpha.tril(-1) / (1 - alpha.diagonal())[:, None]
    assert torch.allclose(attention_policy(query, key, rows, scale=0.5), expected[1:], rtol=1e-10)


def test_rows_are_causal_and_sum_to_one_but_row_zero_is_all_zeros() -> None:
    query, key = tensors(9, 2, 1, 4, torch.float32)
    rows = torch.arange(9)
    found = attention_policy(query, key, rows, scale=0.5)
    assert not found.triu().any()
    assert not found[0].any()
    assert found[1:].sum(-1).tolist() == pytest.approx([1.0] * 8, abs=1e-6)
    query_later, key_later = query.clone(), key.clone()
    query_later[5:] += 1
    key_later[5:] -= 1
    assert torch.equal(attention_policy(query_later, key_later, rows, scale=0.5)[:5], found[:5])


def test_a_row_that_looks_almost_only_at_itself_keeps_its_precision() -> None:
    # its own score is 40 above the others': 1 - alpha_tt is 0 in float32, the ratio of the others is still 1 : 3
    key = torch.tensor([0.0, math.log(3), 40.0]).view(3, 1, 1).requires_grad_()
    found = attention_policy(torch.ones(3, 1, 1), key, torch.tensor([2]), scale=1.0)
    assert found[0].tolist() == pytest.approx([0.25, 0.75, 0.0], rel=1e-5)
    found[0, 0].backward()
    assert key.grad is not None
    # p0 = e^k0 / (e^k0 + e^k1): gradients p0 p1, -p0 p1 and 0
    assert key.grad.flatten().tolist() == pytest.approx([0.1875, -0.1875, 0.0], abs=1e-5)


def test_half_precision_is_computed_in_float32() -> None:
    query, key = tensors(13, 4, 2, 16, torch.bfloat16)
    rows = torch.tensor([12, 5])
    found = attention_policy(query, key, rows, scale=0.25)
    assert found.dtype == torch.float32
    assert torch.equal(found, attention_policy(query.float(), key.float(), rows, scale=0.25))


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (4, 2), (7, 1)])
def test_gradients_against_finite_differences(heads: int, key_heads: int) -> None:
    query, key = (t.requires_grad_() for t in tensors(5, heads, key_heads, 3))
    rows = torch.tensor([0, 2, 4])
    assert torch.autograd.gradcheck(lambda q, k: attention_policy(q, k, rows, scale=0.6), (query, key))


@pytest.mark.parametrize(
    ("query", "key", "rows", "complaint"),
    [
        ((4, 2), (4, 2, 8), [0], r"query must be \[T, H, D\] .* got \(4, 2\) and \(4, 2, 8\)"),
        ((4, 2, 8), (5, 2, 8), [0], r"got \(4, 2, 8\) and \(5, 2, 8\)"),
        ((4, 2, 8), (4, 2, 7), [0], r"got \(4, 2, 8\) and \(4, 2, 7\)"),
        ((4, 3, 8), (4, 2, 8), [0], r"query heads must be a multiple of key heads, got \(4, 3, 8\), \(4, 2, 8\)"),
        ((4, 2, 8), (4, 2, 8), [0.0], r"rows must be int64 \[R\], got torch.float32 \(1,\)"),
        ((4, 2, 8), (4, 2, 8), [[0]], r"rows must be int64 \[R\], got torch.int64 \(1, 1\)"),
        ((4, 2, 8), (4, 2, 8), [1, 4], r"rows \(2,\) must lie in 0..3 of query \(4, 2, 8\), got 1..4"),
        ((0, 2, 8), (0, 2, 8), [0], r"must hold a token, a head and a dimension, got \(0, 2, 8\), \(0, 2, 8\)"),
        ((4, 0, 8), (4, 2, 8), [0], r"must hold a token, a head and a dimension, got \(4, 0, 8\), \(4, 2, 8\)"),
        ((4, 2, 0), (4, 2, 0), [0], r"must hold a token, a head and a dimension, got \(4, 2, 0\), \(4, 2, 0\)"),
        ((4, 2, 8), (4, 2, 8), [-1, 2], r"rows \(2,\) must lie in 0..3 of query \(4, 2, 8\), got -1..2"),
    ],
)
def test_errors_name_the_argument_and_its_shape(query: tuple, key: tuple, rows: list, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        attention_policy(torch.zeros(query), torch.zeros(key), torch.tensor(rows), scale=1.0)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "a", None])
def test_a_scale_that_is_no_finite_number_is_refused(scale: object) -> None:
    with pytest.raises(ValueError, match="scale must be a finite number, got "):
        attention_policy(torch.zeros(4, 2, 8), torch.zeros(4, 2, 8), torch.tensor([1]), scale=scale)  # type: ignore[arg-type]
