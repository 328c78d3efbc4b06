"""The study's tables, from constructed runs with differences worked out by hand."""

import re

import pytest

from ral_system.studies.icl.regression import Measured
from ral_system.studies.icl.results import Curve, alone_table, policy_table, regression_tables


def ends_at(reward: float, clear: float = 0.1) -> Curve:
    start = {"step": 0, "reward": -1.5, "best_reward": -0.25, "distance": 0.4, "clear": 0.5, "noisy": 0.3, "plan": 0.5}
    return [start, start | {"step": 5, "reward": reward, "clear": clear, "contrast": 2.0, "gradient_share": 0.2}]


def cells(table: str, name: str) -> list[str]:
    (row,) = [line for line in table.split("\n") if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.split("|")[2:-1]]


def test_differences_to_grpo_are_paired_by_seed() -> None:
    """RAL gains 0.5 and 0.3: mean 0.4, standard error 0.1, times Student's 12.706."""
    arms = {"GRPO": (ends_at(-1.0), ends_at(-2.0)), "RAL": (ends_at(-0.5), ends_at(-1.7))}
    table = policy_table(arms)
    reward, at_the_end, over_training, *_, kappa = cells(table, "RAL")
    assert reward.startswith("-1.1 [") and kappa == "2"
    assert at_the_end == over_training == "0.4 [-0.871, 1.67]"
    assert cells(table, "GRPO")[1:3] == ["", ""]
    assert "starts at -1.5; the right attention gets -0.25." in table


def test_alone_arms_are_compared_with_their_own_control() -> None:
    arms = {
        "credit": (ends_at(-0.5, 0.1), ends_at(-0.6, 0.2)),
        "credit, permuted": (ends_at(-1.0, 0.4), ends_at(-1.3, 0.7)),
        "told": (ends_at(-0.3),) * 2,
    }
    table = alone_table(arms)
    assert cells(table, "at the start")[:3] == ["-1.5", "0.5", "0.3"]
    assert cells(table, "credit")[3] == "0.6 [-0.671, 1.87]" and cells(table, "credit")[4].startswith("-0.4 [")
    assert cells(table, "told")[3:] == ["", "", ""] == cells(table, "credit, permuted")[3:]


def test_means_of_excess_risks_are_geometric() -> None:
    of_seeds = [
        Measured(
            {"self": {1: 0.05}, "cross": {1: 0.05, 4: excess}},
            {1: (0.17, -0.1), 4: (0.18, -0.18)},
            0.04,
            {1: 0.04, 4: 0.001},
            {"one layer": {16: 0.2}},
        )
        for excess in (0.01, 0.0001)
    ]
    by_depth, by_context = regression_tables(of_seeds)
    assert cells(by_depth, "self-attention")[1] == ""
    found = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", cells(by_depth, "cross-attention")[1])
    assert found is not None
    mean, low, high = map(float, found.groups())
    assert mean == 0.001 and low * high == pytest.approx(mean**2, rel=0.1)
    assert cells(by_depth, "beta learned") == ["(not read)", "-0.18"]
    assert cells(by_context, "one layer") == ["0.2 [0.2, 0.2]"]


def test_one_seed_has_no_intervals() -> None:
    assert "[" not in policy_table({"GRPO": (ends_at(-1.0),), "RAL": (ends_at(-0.5),)})
