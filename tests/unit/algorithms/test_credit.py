"""Credit for glances against hand-worked numbers, and the contrast against every order of the outcomes."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ral_system.algorithms.attention_objectives.credit import contrast, credit, key_values
from ral_system.algorithms.attention_objectives.inputs import shares
from ral_system.config.attention_objective import CreditObjectiveConfig
from tests.unit.algorithms.glances import LOOKS, OUTCOMES, inputs_of, logits_of, of_group, slopes

PLAIN = CreditObjectiveConfig(name="credit", proximal=0.0)
SHARES = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4)


def test_a_key_is_worth_the_mean_advantage_of_the_others_glances() -> None:
    group = torch.tensor(LOOKS, dtype=torch.float64)
    # (0.5 · 0.6 - 0.5 · 0.2) / 0.8, 0, (0.5 · 0.1 - 0.5 · 0.5) / 0.6
    assert key_values(group, OUTCOMES, 2).tolist() == pytest.approx([0.25, 0, -1 / 3])
    # the first one's, without itself: (-0.5 · 0.2 + 0) / 0.7, …
    assert key_values(group, OUTCOMES, 0).tolist() == pytest.approx([-0.1 / 0.7, -0.15 / 0.6, -0.25 / 0.7])


def test_the_loss_and_its_slope_are_the_hand_worked_ones() -> None:
    logits = logits_of(LOOKS)
    loss = credit(inputs_of(of_group(LOOKS, OUTCOMES, [e.softmax(-1) for e in logits])), PLAIN)
    group = torch.tensor(LOOKS, dtype=torch.float64)
    assert loss.item() == pytest.approx(
        -sum(float((group[g] * key_values(group, OUTCOMES, g)).sum()) for g in range(3)) / 3
    )
    # of the third one's own share of the mean over three
    assert slopes(3 * loss, logits)[6:] == pytest.approx([-0.0958, 0.0175, 0.0783], abs=5e-5)


def test_every_glance_of_a_response_has_the_same_weight_however_much_it_looks() -> None:
    small = [[0.001 * x for x in LOOKS[0]], *LOOKS[1:]]
    logits = logits_of(LOOKS)
    found = []
    for looks, scale in ((LOOKS, 1.0), (small, 0.001)):
        own = [e.softmax(-1) * (scale if i == 0 else 1.0) for i, e in enumerate(logits)]
        found.append(slopes(credit(inputs_of(of_group(looks, OUTCOMES, own)), PLAIN), logits))
    assert found[0] == pytest.approx(found[1])


def test_opposite_outcomes_turn_the_slope_around() -> None:
    logits = logits_of(LOOKS)
    own = [e.softmax(-1) for e in logits]
    there, back = (
        slopes(credit(inputs_of(of_group(LOOKS, [sign * a for a in OUTCOMES], own)), PLAIN), logits) for sign in (1, -1)
    )
    assert there == pytest.approx([-x for x in back])
    assert max(map(abs, there)) > 0.03


@pytest.mark.parametrize(
    ("looks", "outcomes"),
    [
        (LOOKS, (0.0, 0.0, 0.0)),
        (LOOKS, (None, None, 0.0)),
        ([LOOKS[0]] * 3, OUTCOMES),
        ([(0.0, 0.0, 0.0)] * 3, OUTCOMES),
    ],
    ids=["alike rewards", "one verdict", "alike looks", "nobody looks"],
)
def test_without_contrast_no_slope(looks: list[tuple[float, ...]], outcomes: tuple[float | None, ...]) -> None:
    logits = logits_of(LOOKS)
    own = [e.softmax(-1) for e in logits] if any(map(any, looks)) else [0.0 * e for e in logits]
    if looks[0] == looks[1]:
        logits = logits_of([LOOKS[0]] * 3)
        own = [e.softmax(-1) * (1.0 if any(map(any, looks)) else 0.0) for e in logits]
    found = slopes(credit(inputs_of(of_group(looks, outcomes, own)), PLAIN), logits)
    assert found == pytest.approx([0.0] * 9, abs=1e-12)


def test_a_key_that_no_other_looks_at_is_worth_nothing() -> None:
    group = torch.tensor([(1.0, 0.0), (1.0, 0.0), (0.5, 0.5)], dtype=torch.float64)
    assert key_values(group, OUTCOMES, 2).tolist() == [0.0, 0.0]
    assert key_values(group, OUTCOMES, 0)[1].item() == pytest.approx(0.0)  # the third one's outcome


def test_responses_without_a_verdict_have_no_say() -> None:
    group = torch.tensor([*LOOKS, (0.9, 0.05, 0.05)], dtype=torch.float64)
    alone = key_values(group[:3], OUTCOMES, 2)
    assert key_values(group, (*OUTCOMES, None), 2).tolist() == pytest.approx(alone.tolist())


def test_the_rows_are_held_near_their_anchor_whatever_the_outcomes() -> None:
    divergences = torch.tensor([[0.1], [0.2], [0.6]], dtype=torch.float64, requires_grad=True)
    settings = CreditObjectiveConfig(name="credit", proximal=2.0)
    loss = credit(inputs_of(of_group(LOOKS, (0.0, 0.0, 0.0)), divergences), settings)
    assert loss.item() == pytest.approx(2 * 0.3)
    (gradient,) = torch.autograd.grad(loss, divergences)
    assert gradient.flatten().tolist() == pytest.approx([2 / 3] * 3)


@given(st.lists(SHARES, min_size=4, max_size=5), st.data())
def test_the_contrast_is_that_over_all_orders(looks: list[list[float]], data: st.DataObject) -> None:
    rewards = data.draw(st.lists(st.sampled_from([0.0, 1.0, 0.3]), min_size=len(looks), max_size=len(looks)))
    centred = [r - sum(rewards) / len(rewards) for r in rewards]
    group = shares(torch.tensor(looks, dtype=torch.float64))

    def variance(outcomes: tuple[float, ...], index: int) -> float:
        u, q = group[index] / group[index].sum(), key_values(group, outcomes, index)
        return float((u * q.square()).sum() - (u * q).sum().square())

    found, shuffled = contrast(group, tuple(centred))
    for g in range(len(looks)):
        assert found[g].item() == pytest.approx(variance(tuple(centred), g), abs=1e-9)
        orders = [variance(order, g) for order in permutations(centred)]
        assert shuffled[g].item() == pytest.approx(sum(orders) / len(orders), abs=1e-9)


def test_a_key_that_only_one_looks_at_counts_as_in_the_values() -> None:
    """There the others' weights do not add up to 1."""
    group = torch.tensor([(0.5, 0.5, 0.0), (1.0, 0.0, 0.0), (0.8, 0.0, 0.2)], dtype=torch.float64)
    found, shuffled = contrast(group, OUTCOMES)
    for g in range(3):
        orders = [
            group[g] @ key_values(group, o, g) ** 2 - (group[g] @ key_values(group, o, g)) ** 2
            for o in permutations(OUTCOMES)
        ]
        assert found[g].item() == pytest.approx(orders[0].item(), abs=1e-12)
        assert shuffled[g].item() == pytest.approx(sum(orders).item() / 6, abs=1e-12)


def test_layers_and_heads_are_averaged_and_who_has_no_verdict_is_left_out() -> None:
    torch.manual_seed(0)
    group = shares(torch.rand(5, 2, 4, 6, dtype=torch.float64))
    found, shuffled = contrast(group, (0.5, None, -0.5, 0.25, -0.25))
    assert found[1] == shuffled[1] == 0
    known = group[[0, 2, 3, 4]]
    apart = [contrast(known[:, layer, head], (0.5, -0.5, 0.25, -0.25)) for layer in range(2) for head in range(4)]
    for whole, parts in zip((found, shuffled), zip(*apart, strict=True), strict=True):
        assert whole[[0, 2, 3, 4]].tolist() == pytest.approx((sum(parts) / 8).tolist())
    assert contrast(group, (0.5, None, -0.5, None, None))[0].tolist() == [0.0] * 5


def test_looks_that_differ_with_the_outcome_have_contrast() -> None:
    here, there, outcomes = (0.8, 0.1, 0.1), (0.1, 0.1, 0.8), (0.5, 0.5, 0.5, -0.5, -0.5, -0.5)

    def quotient(*looks: tuple[float, ...]) -> float:
        variance, shuffled = contrast(torch.tensor(looks, dtype=torch.float64), outcomes)
        return float(variance.sum() / shuffled.sum())

    assert quotient(here, here, here, there, there, there) > 2 > 1 > quotient(here, there, here, here, there, there)


def test_everyone_looking_alike_has_no_contrast_not_one_of_rounding_errors() -> None:
    group = shares(torch.rand(1, 1, 50, dtype=torch.float64).expand(8, 1, 50))
    variance, shuffled = contrast(group, (0.5, -0.5) * 4)
    assert variance.tolist() == shuffled.tolist() == [0.0] * 8


def test_almost_no_attention_is_no_share_and_has_no_slope() -> None:
    sums = torch.tensor([3e-9, 1e-9], dtype=torch.float64, requires_grad=True)
    found = shares(sums)
    (slope,) = torch.autograd.grad(found[0], sums)
    assert found.tolist() == slope.tolist() == [0.0, 0.0]
