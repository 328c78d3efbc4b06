from math import log

import pytest
import torch

from ral_system.algorithms.log_probs import entropy, sampling_log_softmax

NONE = torch.tensor([], dtype=torch.int64)


def test_temperature_and_bans_by_hand() -> None:
    # logits 2 ln 3, 0, 0, 50 at temperature 2: weights 3, 1, 1 and the last banned, so 3/5, 1/5, 1/5, 0
    logits = torch.tensor([[2 * log(3), 0.0, 0.0, 50.0]])
    found = sampling_log_softmax(logits, temperature=2.0, banned_token_ids=torch.tensor([3]))
    assert found.exp()[0].tolist() == pytest.approx([0.6, 0.2, 0.2, 0.0], rel=1e-6)
    assert found[0, 3].item() == -float("inf")
    assert logits[0, 3].item() == 50.0  # the caller's logits stay as they are


def test_temperature_one_without_bans_is_log_softmax() -> None:
    logits = torch.randn(5, 37, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sampling_log_softmax(logits, temperature=1.0, banned_token_ids=NONE), logits.log_softmax(-1))


def test_half_precision_logits_are_normalised_in_float32() -> None:
    logits = torch.randn(3, 37, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = sampling_log_softmax(logits, temperature=0.7, banned_token_ids=NONE)
    assert found.dtype == torch.float32
    assert found.exp().sum(-1).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_banned_tokens_receive_no_gradient_and_spoil_none() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    found = sampling_log_softmax(logits, temperature=1.0, banned_token_ids=torch.tensor([2]))
    found[0, 0].backward()
    p = 1 / (1 + torch.e)  # e^1 / (e^1 + e^2)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([1 - p, p - 1, 0.0], rel=1e-6)


def test_entropy_by_hand() -> None:
    # uniform over 4: ln 4; (1/2, 1/4, 1/4): 1/2 ln 2 + 1/2 ln 4 = 3/2 ln 2; certain: 0; banned tokens add nothing
    rows = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]]).log()
    assert entropy(rows).tolist() == pytest.approx([log(4), 1.5 * log(2), 0.0], rel=1e-6)


def test_entropy_has_a_finite_gradient_where_tokens_are_banned() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    banned = torch.tensor([1, 4])

    def of(logits: torch.Tensor) -> torch.Tensor:
        return entropy(logits.index_fill(-1, banned, float("-inf")).log_softmax(-1)).sum()

    (gradient,) = torch.autograd.grad(of(logits), logits)
    assert (gradient[:, banned] == 0).all() and gradient.isfinite().all() and gradient.abs().max() > 0
    step = 1e-6
    for i in range(3):
        for j in range(5):
            up, down = (
                logits.detach().index_put((torch.tensor(i), torch.tensor(j)), logits[i, j].detach() + s)
                for s in (step, -step)
            )
            assert (of(up) - of(down)) / (2 * step) == pytest.approx(gradient[i, j].item(), abs=1e-7)
