"""Records of attention rows: what they keep, how large they are, and what a divergence to them means."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ral_system.algorithms.divergence_sum import divergence
from ral_system.attention import attention_divergence, attention_policy
from ral_system.attention.divergence import policy_blocks
from ral_system.attention.record import Target, record_attention
from ral_system.registry import DIVERGENCES
from ral_system.types import AttentionRecord

T, SCALE = 37, 0.3
ROWS = torch.tensor([36, 0, 12, 30, 31, 1])


def tensors(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(T, 4, 16, generator=generator) * 2, torch.randn(T, 2, 16, generator=generator)


def record(
    seed: int = 0, top_k: int | None = None, dtype: torch.dtype = torch.float32, heads: str = "mean"
) -> AttentionRecord:
    blocks = policy_blocks(*tensors(seed), ROWS, scale=SCALE, heads=heads)  # type: ignore[arg-type]
    return record_attention(blocks, version=7, tokens=T, top_k=top_k, dtype=dtype)


def test_a_dense_record_is_the_policy() -> None:
    policy = attention_policy(*tensors(), ROWS, scale=SCALE)
    whole, half = record(), record(dtype=torch.bfloat16)
    assert (whole.version, whole.tokens, whole.values.dtype) == (7, T, np.float32)
    assert np.allclose(whole.values, policy, rtol=1e-5, atol=1e-8)
    assert half.values.dtype == np.uint16
    assert half.nbytes == whole.nbytes // 2
    as_float = torch.from_numpy(half.values).view(torch.bfloat16).float()
    assert torch.equal(as_float, torch.from_numpy(whole.values).bfloat16().float())


def test_a_compressed_record_keeps_the_largest_and_the_mass_of_the_rest() -> None:
    policy, found = torch.from_numpy(record().values), record(top_k=5)
    assert found.indices is not None and found.tail is not None
    assert (found.values.shape, found.indices.shape, found.tail.shape) == ((6, 5), (6, 5), (6,))
    for r, row in enumerate(policy):
        assert found.values[r].tolist() == sorted(row.tolist(), reverse=True)[:5]
        assert row[found.indices[r]].tolist() == found.values[r].tolist()
        kept = found.values[r].astype(float).sum()
        assert found.tail[r] == pytest.approx(float(row.double().sum()) - kept, abs=1e-6)


def test_a_long_compressed_record_is_small() -> None:
    def blocks() -> Iterator[Tensor]:
        for _ in range(12):
            yield torch.rand(64, 16384, generator=torch.Generator().manual_seed(0)).softmax(-1)

    found = record_attention(blocks(), version=0, tokens=16384, top_k=64, dtype=torch.bfloat16)
    assert found.values.shape == (768, 64)
    assert found.nbytes <= 0.5e6


def test_no_row_makes_an_empty_record() -> None:
    for top_k in (None, 3):
        query, key, rows = torch.zeros(9, 2, 4), torch.zeros(9, 1, 4), torch.tensor([], dtype=torch.int64)
        blocks = policy_blocks(query, key, rows, scale=1.0)
        found = record_attention(blocks, version=0, tokens=9, top_k=top_k, dtype=torch.float32)
        assert found.values.shape == (0, 9 if top_k is None else 3)
        assert attention_divergence(query, key, rows, found, scale=1.0).shape == (0,)


@pytest.mark.parametrize("heads", ["mean", "each"])
@pytest.mark.parametrize("backend", ["dense", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_k", [None, 4, 100])
@pytest.mark.parametrize("kind", DIVERGENCES.names)
def test_at_the_recorded_weights_value_and_gradient_are_zero(
    kind: str, top_k: int | None, dtype: torch.dtype, backend: str, heads: str
) -> None:
    query, key = (t.requires_grad_() for t in tensors())
    own = record(top_k=top_k, dtype=dtype, heads=heads)
    found = attention_divergence(query, key, ROWS, own, scale=SCALE, kind=kind, heads=heads, backend=backend)
    found.sum().backward()
    limit = 0.0 if backend == "chunked" else 1e-6  # the definition rounds in another order than what was recorded
    assert found.abs().max() <= limit
    if backend == "chunked":
        assert not query.grad.any() and not key.grad.any()


@pytest.mark.parametrize("kind", DIVERGENCES.names)
def test_a_compressed_record_gives_a_lower_bound_that_closes(kind: str) -> None:
    """The data-processing inequality, on every row; the gap shrinks to 0 as K grows."""
    query, key = tensors(1)
    true = attention_divergence(query, key, ROWS, record(), scale=SCALE, kind=kind)
    gaps = []
    for top_k in (1, 2, 4, 8, 16, T):
        bound = attention_divergence(query, key, ROWS, record(top_k=top_k), scale=SCALE, kind=kind)
        assert (bound <= true + 1e-6).all()
        gaps.append(((true - bound).sum() / true.sum()).item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.1
    assert gaps[-1] == pytest.approx(0, abs=1e-5)


def slow_bins(policy: Tensor, of: AttentionRecord) -> tuple[Tensor, Tensor]:
    """K + 1 bins of both sides, row by row."""
    assert of.indices is not None and of.tail is not None
    p, q = [], []
    for r, row in enumerate(policy):
        kept = [row[i] for i in of.indices[r]]
        p.append(torch.stack([*kept, row.sum() - torch.stack(kept).sum()]))
        q.append(torch.tensor([*of.values[r].tolist(), float(of.tail[r])], dtype=torch.float64))
    return torch.stack(p), torch.stack(q)


@pytest.mark.parametrize("backend", ["dense", "chunked"])
@pytest.mark.parametrize("kind", DIVERGENCES.names)
def test_compressed_values_and_gradients_equal_slow_code(kind: str, backend: str) -> None:
    of, slow = record(top_k=4), [t.double().requires_grad_() for t in tensors(1)]
    expected = divergence(*slow_bins(attention_policy(*slow, ROWS, scale=SCALE), of), kind)
    expected.sum().backward()
    query, key = (t.requires_grad_() for t in tensors(1))
    found = attention_divergence(query, key, ROWS, of, scale=SCALE, kind=kind, backend=backend)
    found.sum().backward()
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-7)
    for a, b in ((query, slow[0]), (key, slow[1])):
        assert torch.allclose(a.grad.double(), b.grad, rtol=1e-3, atol=1e-5 * b.grad.abs().max())


def test_rounding_passes_the_gradient() -> None:
    q = record(dtype=torch.bfloat16)
    p = torch.from_numpy(record(1).values).requires_grad_()
    Target(q, p.device).divergence(p, slice(None), "jsd").sum().backward()
    rounded = p.detach().bfloat16().float().requires_grad_()
    divergence(rounded, torch.from_numpy(q.values).view(torch.bfloat16).float(), "jsd").sum().backward()
    assert torch.equal(p.grad, rounded.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "tokens", "complaint"),
    [
        (ROWS, T + 1, r"target is a record over 37 keys, but query has 38 tokens"),
        (ROWS[:2], T, r"target is a record of \(6, 4\), but rows ask for \[R, T\] = \(2, 37\)"),
    ],
)
def test_a_record_of_another_sequence_is_refused(rows: Tensor, tokens: int, complaint: str) -> None:
    query, key = torch.zeros(tokens, 4, 16), torch.zeros(tokens, 2, 16)
    with pytest.raises(ValueError, match=complaint):
        attention_divergence(query, key, rows, record(top_k=4), scale=SCALE)


def test_a_record_of_other_weights_is_refused() -> None:
    query, key = tensors()
    attention_divergence(query, key, ROWS, record(), scale=SCALE, version=7)
    with pytest.raises(ValueError, match="target is a record of weights 7, but version=8"):
        attention_divergence(query, key, ROWS, record(), scale=SCALE, version=8)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"values": np.full((6, 4), np.nan, np.float32)}, r"probabilities ≥ 0, got nan at \[0, 0\] of \(6, 4\)"),
        ({"values": np.full((6, 4), -0.1, np.float32)}, r"probabilities ≥ 0, got -0.1"),
        ({"values": np.full((6, 4), 1.0, np.float32)}, r"a row of \(6, 4\) adds up to 4"),
        ({"indices": np.full((6, 4), T, np.int32)}, "a record of keys 37..37, but query has 37 tokens"),
        ({"indices": np.zeros((6, 3), np.int32)}, r"a record of \(6, 4\), but rows ask for"),
        ({"tail": None}, r"a record of \(6, 4\) whose tail is None, not \(6,\)"),
        ({"tail": np.zeros(5, np.float32)}, r"whose tail is \(5,\), not \(6,\)"),
        ({"tail": np.full(6, np.nan, np.float32)}, r"probabilities ≥ 0, got nan at \[0, 4\] of \(6, 5\)"),
        ({"tail": np.full(6, -0.5, np.float32)}, r"probabilities ≥ 0, got -0.5 at \[0, 4\]"),
        ({"tail": np.full(6, np.inf, np.float32)}, r"probabilities ≥ 0, got inf at \[0, 4\]"),
        ({"tail": np.full(6, 5.0, np.float32)}, r"a row of \(6, 5\) adds up to [56]"),
        ({"indices": np.full((6, 4), 1, np.int32)}, r"a record of \(6, 4\) keys, some of them twice in a row"),
    ],
)
def test_a_record_that_cannot_be_is_refused(change: dict, complaint: str) -> None:
    query, key = tensors()
    with pytest.raises(ValueError, match=complaint):
        attention_divergence(query, key, ROWS, replace(record(top_k=4), **change), scale=SCALE)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"top_k": 0}, "top_k must be at least 1, or None to keep every entry, got 0"),
        ({"dtype": torch.int64}, "dtype must be torch.float32 or torch.bfloat16, got torch.int64"),
        ({"tokens": 4}, r"blocks must be \[R, T\] or \[H, R, T\] with T = 4 tokens, got \(2, 6\)"),
        ({"blocks": []}, "blocks holds no policy"),
    ],
)
def test_what_cannot_be_recorded_is_refused(change: dict, complaint: str) -> None:
    given: dict = {"blocks": [torch.zeros(2, 6)], "version": 0, "tokens": 6, "top_k": 2, "dtype": torch.float32}
    with pytest.raises(ValueError, match=complaint):
        record_attention(**given | change)
