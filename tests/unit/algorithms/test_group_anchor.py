"""The group's anchor against hand-worked numbers."""

import math

import pytest
import torch

from ral_system.algorithms.attention_objectives.group_anchor import group_anchor, side
from ral_system.algorithms.attention_objectives.inputs import Glances
from ral_system.config.attention_objective import GroupAnchorObjectiveConfig
from tests.unit.algorithms.glances import LOOKS, OUTCOMES, inputs_of, logits_of, of_group, slopes

IMITATES = GroupAnchorObjectiveConfig(name="group_anchor", repel=0.0)
REPELS = GroupAnchorObjectiveConfig(name="group_anchor", repel=0.5)


def test_the_loss_and_its_slope_are_the_hand_worked_ones() -> None:
    looks, outcomes = [(0.5, 0.3, 0.2), (0.2, 0.3, 0.5)], (-1.0, 1.0)
    logits = logits_of(looks)
    loss = group_anchor(inputs_of(of_group(looks, outcomes, [e.softmax(-1) for e in logits])), IMITATES)
    # the second one has no peer that did better, so all of the loss is the first one's
    assert 2 * loss.item() == pytest.approx(0.0664, abs=5e-5)
    found = slopes(2 * loss, logits)
    assert found[:3] == pytest.approx([0.0726, -0.0100, -0.0626], abs=5e-5)
    assert found[3:] == pytest.approx([0.0] * 3)


def test_the_sides_are_means_of_the_others_weighed_with_how_much_better_or_worse_they_did() -> None:
    group = torch.tensor([*LOOKS, (0.1, 0.1, 0.8)], dtype=torch.float64)
    outcomes = (0.2, -0.6, 0.6, -0.2)
    better, worse = (side(group, outcomes, 1, sign) for sign in (1.0, -1.0))
    assert better.tolist() == pytest.approx(
        [(0.2 * a + 0.6 * b) / 0.8 for a, b in zip(LOOKS[0], LOOKS[2], strict=True)]
    )
    assert worse.tolist() == pytest.approx([0.1, 0.1, 0.8])
    assert side(group, (0.5, None, -0.25, -0.25), 0, 1.0).tolist() == [0.0] * 3  # itself does not count


def test_the_worse_ones_are_shunned_by_half() -> None:
    found = [group_anchor(inputs_of(of_group(LOOKS, OUTCOMES)), s).item() for s in (IMITATES, REPELS)]
    turned = group_anchor(inputs_of(of_group(LOOKS, [-a for a in OUTCOMES])), IMITATES).item()
    assert found[1] == pytest.approx(found[0] - 0.5 * turned)
    assert -0.5 * math.log(2) <= found[1] <= math.log(2)


@pytest.mark.parametrize(
    ("looks", "outcomes"),
    [(LOOKS, (0.0, 0.0, 0.0)), (LOOKS, (None, None, 0.0)), ([LOOKS[0]] * 3, OUTCOMES)],
    ids=["alike rewards", "one verdict", "alike looks"],
)
def test_without_contrast_no_slope(looks: list[tuple[float, ...]], outcomes: tuple[float | None, ...]) -> None:
    logits = logits_of(looks)
    loss = group_anchor(inputs_of(of_group(looks, outcomes, [e.softmax(-1) for e in logits])), REPELS)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert slopes(loss, logits) == pytest.approx([0.0] * 9, abs=1e-9)


def test_whoever_never_looks_has_no_say() -> None:
    blind = torch.tensor([*LOOKS, (0.0, 0.0, 0.0)], dtype=torch.float64)
    with_it, without = side(blind, (0.5, -1, 0, 0.5), 1, 1.0), side(blind[:3], (0.5, -1, 0), 1, 1.0)
    assert with_it.tolist() == pytest.approx(without.tolist())


def test_a_head_that_the_better_ones_do_not_look_with_has_no_target() -> None:
    looks = torch.tensor([(0.6, 0.4), (0.2, 0.8), (0.5, 0.5)], dtype=torch.float64)
    blind = torch.zeros(3, 2, dtype=torch.float64)
    outcomes = (0.5, -0.25, -0.25)
    one = [Glances(looks[i, None], looks[:, None], outcomes, i) for i in range(3)]
    both = torch.stack([looks, blind], dim=1)
    two = [Glances(both[i], both, outcomes, i) for i in range(3)]
    found, expected = (group_anchor(inputs_of(glances), REPELS).item() for glances in (two, one))
    assert found == pytest.approx(expected / 2) != 0  # the mean over two heads; one is zero
