from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ral_system.attention.group import GroupAttention, LayerAttention
from ral_system.config.choices import Dtype
from ral_system.config.commands import TrainConfig
from ral_system.training.gradient_share import (
    cap,
    factor_and_metrics,
    hold,
    scaled,
    share,
    squared_norms,
    without_weight,
)
from ral_system.training.objective import Objective

FLOAT32, BFLOAT16 = 1e-6, 5e-3
"""What counts as rounding of a gradient, relative to the token loss's."""


def test_norms_by_hand() -> None:
    query, other = (torch.ones(1, 1, tokens, 1, requires_grad=True) for tokens in (3, 2))
    token = (query[0, 0, :, 0] * torch.tensor([3.0, 0.0, 9.0])).sum() + 4 * other[0, 0, 1, 0]
    attention = 2 * query.sum()
    # at rows 0 and 1 of one layer and row 1 of the other: (3, 0), (4), norm 5; (2, 2), none, norm √8
    probed = [(query, torch.tensor([0, 1])), (other, torch.tensor([1]))]
    squared = squared_norms(Objective(token, {}, attention=attention), probed)
    assert squared.tolist() == pytest.approx([25.0, 8.0])
    assert share(squared) == pytest.approx(8**0.5 / (5 + 8**0.5))
    (token + attention).backward()  # the graph is kept
    assert query.grad is not None


def test_the_cap_brings_the_share_to_its_limit() -> None:
    squared = torch.tensor([4.0, 36.0], dtype=torch.float64)  # norms 2 and 6: share 3/4
    factor = cap(squared, 0.5)
    assert factor == pytest.approx(1 / 3)
    assert share(scaled(squared, factor)) == pytest.approx(0.5)
    assert cap(squared, 0.8) == 1.0


def test_without_gradients_there_is_no_share() -> None:
    nothing = torch.zeros(2, dtype=torch.float64)
    assert (share(nothing), cap(nothing, 0.1), hold(nothing, 0.1, "float32")) == (0.0, 1.0, 1.0)
    assert cap(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.1) == 0.0  # nothing to be a share of
    assert hold(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.1, "float32") == 0.0


@pytest.mark.parametrize("attention", [1e-5, 0.01, 6.0])
def test_a_share_is_held_from_above_and_from_below(attention: float) -> None:
    squared = torch.tensor([4.0, attention**2], dtype=torch.float64)
    factor = hold(squared, 0.2, "float32")
    assert factor == pytest.approx(0.25 * 2 / attention)
    assert share(scaled(squared, factor)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("weights", "records", "floor"),
    [("float32", "float32", FLOAT32), ("bfloat16", "float32", BFLOAT16), ("float32", "bfloat16", BFLOAT16)],
)
def test_rounding_errors_are_not_scaled_up(
    make_config: Callable[..., TrainConfig], weights: Dtype, records: Dtype, floor: float
) -> None:
    """Errors of the weights or of the compared rows, whichever are coarser; the token loss's norm is 2."""
    settings = make_config(
        "algorithm.attention.target_gradient_share=0.2", f"algorithm.attention.record_dtype={records}"
    ).algorithm.attention

    def found(attention: float) -> tuple[float, dict[str, float]]:
        return factor_and_metrics(torch.tensor([4.0, attention**2], dtype=torch.float64), settings, weights)

    factor, metrics = found(1.9 * floor)
    assert factor == 1.0 == metrics["attention/gradient_factor"]
    assert metrics["attention/gradient_share"] == pytest.approx(0.95 * floor, rel=floor)
    factor, metrics = found(2.1 * floor)
    assert factor == pytest.approx(0.25 / (1.05 * floor)) == metrics["attention/gradient_factor"]
    assert metrics["attention/gradient_share"] == pytest.approx(0.2)


def test_without_weight_all_layers_are_gone_through_and_nothing_is_found() -> None:
    """As ranks under ZeRO-3 do: what a rank without samples leaves out, the others wait for."""
    torch.manual_seed(0)
    first, second, head = (nn.Linear(4, 4) for _ in range(3))
    passed: list[str] = []
    for name, layer in (("second", second), ("head", head)):
        layer.register_full_backward_hook(lambda module, gave, took, name=name: passed.append(name))
    query = first(torch.randn(1, 1, 3, 4)).requires_grad_()
    deeper = second(query)
    rows = torch.tensor([1, 2])

    def seen(of: Tensor) -> LayerAttention:
        return LayerAttention(of[0].transpose(0, 1)[rows], of[0].transpose(0, 1), 1.0)

    group = GroupAttention.alone((seen(query), seen(deeper)), rows)
    losses = without_weight(SimpleNamespace(log_probs=head(deeper).sum(-1)[0, :, 1:]), [group])
    assert squared_norms(losses, [(query, rows), (deeper, rows)]).tolist() == [0.0, 0.0]
    assert passed == ["head", "second", "second"]  # the token loss through both, the attention of the deeper layer
