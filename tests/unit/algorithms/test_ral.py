from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ral_system.algorithms.attention_objectives.ral import attention_loss

ADVANTAGES = [1.5, -0.5, 0.0, 2.0]
LENGTHS = [3, 1, 4, 0]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    divergence = torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(4)[None] < torch.tensor(LENGTHS)[:, None]
    return divergence, torch.tensor(ADVANTAGES, dtype=torch.float64), mask


def slow_loss(divergence: Tensor, reduction: str, tokens: int, sequences: int) -> float:
    total = 0.0
    for b, (advantage, length) in enumerate(zip(ADVANTAGES, LENGTHS, strict=True)):
        values = [advantage * divergence[b, t].item() for t in range(length)]
        if reduction == "token_mean":
            total += sum(values) / tokens
        elif values:
            total += sum(values) / len(values) / sequences
    return total


def test_both_reductions_by_hand() -> None:
    # sequence 1: A = 2, JSD 0.1, 0.3; sequence 2: A = -1, JSD 0.4
    # token mean over 3 rows: (0.2 + 0.6 - 0.4) / 3 = 0.4 / 3; sequence mean over 2: (0.4 - 0.4) / 2 = 0
    divergence, advantages = torch.tensor([[0.1, 0.3], [0.4, 9.0]]), torch.tensor([2.0, -1.0])
    mask = torch.tensor([[True, True], [True, False]])
    counts = {"global_tokens": 3, "global_sequences": 2}
    assert attention_loss(divergence, advantages, mask, reduction="token_mean", **counts).item() == pytest.approx(
        0.4 / 3
    )
    found = attention_loss(divergence, advantages, mask, reduction="sequence_mean", **counts).item()
    assert found == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_loss_equals_slow_code_and_micro_batches_add_up(reduction: str) -> None:
    divergence, advantages, mask = batch()
    counts = {"global_tokens": 20, "global_sequences": 7}  # of the whole update: more than this batch has
    whole = attention_loss(divergence, advantages, mask, reduction=reduction, **counts).item()  # type: ignore[arg-type]
    assert whole == pytest.approx(slow_loss(divergence, reduction, 20, 7), rel=1e-12)
    for cuts in ((0, 1, 2, 3, 4), (0, 2, 4), (0, 3, 4)):
        shares = [
            attention_loss(divergence[i:j], advantages[i:j], mask[i:j], reduction=reduction, **counts)  # type: ignore[arg-type]
            for i, j in pairwise(cuts)
        ]
        assert sum(s.item() for s in shares) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_garbage_behind_the_mask_does_not_leak(reduction: str, garbage: float) -> None:
    divergence, advantages, mask = batch()
    counts = {"global_tokens": 8, "global_sequences": 4}
    expected = attention_loss(divergence, advantages, mask, reduction=reduction, **counts)  # type: ignore[arg-type]
    spoilt = torch.where(mask, divergence, garbage).requires_grad_()
    found = attention_loss(spoilt, advantages, mask, reduction=reduction, **counts)  # type: ignore[arg-type]
    found.backward()
    assert found.item() == expected.item()
    assert spoilt.grad is not None and spoilt.grad.isfinite().all()
    assert not spoilt.grad[~mask].any()


def test_the_sign_of_the_advantage_is_the_sign_of_the_force() -> None:
    divergence, advantages, mask = batch()
    divergence.requires_grad_()
    attention_loss(divergence, advantages, mask, reduction="token_mean", global_tokens=8, global_sequences=4).backward()
    assert divergence.grad is not None
    # minimising pulls a good row back (gradient A/N > 0) and pushes a bad one away (A/N < 0)
    assert divergence.grad[0, 0].item() == 1.5 / 8
    assert divergence.grad[1, 0].item() == -0.5 / 8
    assert not divergence.grad[2].any()


def test_another_reduction_is_refused_by_name() -> None:
    divergence, advantages, mask = batch()
    with pytest.raises(ValueError, match="reduction='sum'; known: token_mean, sequence_mean"):
        attention_loss(divergence, advantages, mask, reduction="sum", global_tokens=1, global_sequences=1)  # type: ignore[arg-type]
