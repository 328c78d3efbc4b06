"""Every number is worked out in the comment above it. N = 8 is larger than the batch: a share of a larger update."""

from math import exp, log

import pytest
import torch

from ral_system.algorithms.policy_loss import clipped_policy_loss

N, EPSILON = 8, 0.2


def loss_and_gradient(
    ratios: list[list[float]], advantages: list[float], mask: list[list[bool]] | None = None
) -> tuple[float, int, list[list[float]]]:
    old = torch.full((len(ratios), len(ratios[0])), -1.3, dtype=torch.float64)
    new = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    kept = torch.ones_like(old, dtype=torch.bool) if mask is None else torch.tensor(mask)
    found = clipped_policy_loss(
        new, old, torch.tensor(advantages, dtype=torch.float64), kept, clip_epsilon=EPSILON, global_tokens=N
    )
    (gradient,) = torch.autograd.grad(found.loss, new)
    assert not found.clipped.requires_grad
    return found.loss.item(), int(found.clipped), gradient.tolist()


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "clipped"),
    [
        # min(r A, clip(r, 0.8, 1.2) A):
        (1.5, 2.0, 2.4, True),  # min(3.0, 1.2 · 2 = 2.4): good token already 1.5 times as likely, held back
        (0.5, 2.0, 1.0, False),  # min(1.0, 0.8 · 2 = 1.6): good token has become rarer, pulled up
        (1.5, -2.0, -3.0, False),  # min(-3.0, -2.4): bad token has become likelier, pushed down
        (0.5, -2.0, -1.6, True),  # min(-1.0, -1.6): bad token already halved, held back
        (1.1, 2.0, 2.2, False),  # inside the range both are r A
        (0.9, -2.0, -1.8, False),
        (1.5, 0.0, 0.0, False),
    ],
)
def test_each_branch_by_hand(ratio: float, advantage: float, objective: float, clipped: bool) -> None:
    loss, held_back, ((gradient,),) = loss_and_gradient([[ratio]], [advantage])
    assert loss == pytest.approx(-objective / N, rel=1e-12)
    assert held_back == clipped
    # d(r A)/d log pi = r A where the unclipped branch counts; the clipped branch is constant
    if clipped:
        assert gradient == 0.0
    else:
        assert gradient == pytest.approx(-ratio * advantage / N, rel=1e-12)


@pytest.mark.parametrize("advantage", [1.7, -0.6])
def test_on_policy_it_is_the_plain_policy_gradient(advantage: float) -> None:
    loss, held_back, gradient = loss_and_gradient([[1.0, 1.0]], [advantage])
    assert loss == pytest.approx(-2 * advantage / N)
    assert held_back == 0
    assert gradient == [[-advantage / N, -advantage / N]]


def test_a_batch_is_the_sum_of_its_tokens_and_masked_ones_do_not_count() -> None:
    # A = 2: 2.4 (clipped) + 1.0 + masked; A = -2: -3.0 + masked + -1.6 (clipped); sum -1.2, so L = 1.2 / 8 = 0.15
    mask = [[True, True, False], [True, False, True]]
    loss, held_back, gradient = loss_and_gradient([[1.5, 0.5, 1.5], [1.5, 0.5, 0.5]], [2.0, -2.0], mask)
    assert loss == pytest.approx(0.15)
    assert held_back == 2
    assert gradient == [pytest.approx([0, -0.125, 0]), pytest.approx([0.375, 0, 0])]
    assert gradient[0][2] == gradient[1][1] == 0.0


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e4, -1e4])
def test_garbage_behind_the_mask_leaks_neither_into_the_loss_nor_into_gradients(garbage: float) -> None:
    # one kept token with r = 1 and A = 2: L = -2/8; `garbage` is computed from the same parameter
    weight = torch.tensor(1.0, requires_grad=True)
    new = torch.stack([-1.0 * weight, garbage * weight])[None]
    for old in (torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, garbage]])):
        mask = torch.tensor([[True, False]])
        found = clipped_policy_loss(new, old, torch.tensor([2.0]), mask, clip_epsilon=EPSILON, global_tokens=N)
        assert found.loss.item() == -0.25
        assert int(found.clipped) == 0
        (gradient,) = torch.autograd.grad(found.loss, new, retain_graph=True)
        assert gradient.tolist() == [[-0.25, 0.0]]


def test_shares_of_micro_batches_add_up() -> None:
    ratios = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).mul(2).add(0.1).tolist()
    advantages = [1.0, -0.5, 0.0, 2.0, -2.0, 0.3]
    whole = loss_and_gradient(ratios, advantages)
    parts = [loss_and_gradient(ratios[i:j], advantages[i:j]) for i, j in ((0, 1), (1, 4), (4, 6))]
    assert sum(p[0] for p in parts) == pytest.approx(whole[0], rel=1e-12)
    assert sum(p[1] for p in parts) == whole[1] > 0
    assert [row for p in parts for row in p[2]] == whole[2]


def test_old_log_probs_are_constant() -> None:
    old = torch.tensor([[log(0.5)]], requires_grad=True)
    new = torch.tensor([[log(0.5) + 0.01]], requires_grad=True)
    found = clipped_policy_loss(
        new, old, torch.tensor([1.0]), torch.tensor([[True]]), clip_epsilon=EPSILON, global_tokens=N
    )
    found.loss.backward()
    assert old.grad is None
    assert new.grad is not None and new.grad.item() == pytest.approx(-exp(0.01) / N, rel=1e-6)


def test_an_empty_mask_gives_zero() -> None:
    loss, held_back, gradient = loss_and_gradient([[1.5]], [2.0], [[False]])
    assert (loss, held_back, gradient) == (0.0, 0, [[0.0]])
