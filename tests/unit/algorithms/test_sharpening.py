"""The sharpening control by hand, in float32 and bfloat16, and what it leaves alone."""

import numpy as np
import pytest
import torch

from ral_system.algorithms.attention_objectives.inputs import AttentionInputs
from ral_system.algorithms.attention_objectives.sharpening import sharpening
from ral_system.algorithms.divergence_sum import divergence
from ral_system.attention.record import record_attention, sharpened
from ral_system.config.attention_objective import SharpeningObjectiveConfig

SETTINGS = SharpeningObjectiveConfig(name="sharpening", temperature=0.5)
ROW = torch.tensor([[0.5, 0.3, 0.2]])


def target(power: float, dtype: torch.dtype = torch.float32, row: torch.Tensor = ROW) -> torch.Tensor:
    record = record_attention([row], version=0, tokens=row.shape[-1], top_k=None, dtype=dtype)
    return torch.from_numpy(sharpened(record, power).values)


@pytest.mark.parametrize(
    ("advantage", "gradient"),
    [(1.0, (-0.158, 0.063, 0.095)), (-1.0, (0.085, -0.022, -0.063)), (2.0, (-0.316, 0.126, 0.19)), (0.0, (0, 0, 0))],
)
def test_by_hand(advantage: float, gradient: tuple[float, ...]) -> None:
    """At the old policy; the loss is |A| times cross-entropy less the entropy of the target."""
    logits = ROW.double().log().requires_grad_()
    q = target(2.0 if advantage > 0 else 0.5).double()
    p = logits.softmax(-1)
    inputs = AttentionInputs(
        torch.zeros(1, 1),
        torch.tensor([advantage]),
        torch.ones(1, 1, dtype=torch.bool),
        (),
        "token_mean",
        1,
        1,
        sharpened=divergence(p, q, "forward_kl")[None],
    )
    loss = sharpening(inputs, SETTINGS)
    cross_entropy = -(q * p.log()).sum() + (q * q.log()).sum()
    assert loss.item() == pytest.approx(abs(advantage) * cross_entropy.item(), rel=1e-5)
    (found,) = torch.autograd.grad(loss, logits)
    assert found[0].tolist() == pytest.approx(gradient, abs=1e-3)
    assert found[0].tolist() == pytest.approx((abs(advantage) * (p - q))[0].tolist(), abs=1e-6)


def test_powers_sharpen_and_flatten_and_keep_the_order() -> None:
    assert target(2.0)[0].tolist() == pytest.approx([25 / 38, 9 / 38, 4 / 38])
    roots = np.sqrt([0.5, 0.3, 0.2])
    assert target(0.5)[0].tolist() == pytest.approx(roots / roots.sum())
    assert target(2.0, torch.bfloat16)[0].tolist() == pytest.approx([25 / 38, 9 / 38, 4 / 38], abs=5e-3)


def test_masked_keys_and_rows_without_keys_stay_as_they_are() -> None:
    rows = torch.tensor([[0.0, 0.75, 0.25, 0.0], [0.0, 0.0, 0.0, 0.0], [1e-30, 1.0, 0.0, 0.0]])
    for power in (2.0, 0.5):
        found = target(power, row=rows)
        assert found.isfinite().all() and found[0, 0] == found[0, 3] == 0 and not found[1].any()
        assert found[[0, 2]].sum(-1).tolist() == pytest.approx([1, 1])
    each = torch.stack([rows, rows.flip(0)])
    assert torch.equal(target(2.0, row=each)[1], target(2.0, row=rows).flip(0))


def test_a_part_of_a_row_is_refused() -> None:
    record = record_attention([ROW], version=0, tokens=3, top_k=2, dtype=torch.float32)
    with pytest.raises(ValueError, match="record of 2 entries per row: only whole rows can be sharpened"):
        sharpened(record, 2.0)
