"""Differences between arms in what a study shows beside accuracy, paired by seed: where models look, for example."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from ral_system.evaluation.paired import t_quantile
from ral_system.launch.study.files import Compared
from ral_system.launch.study.table import table

Line = Mapping[str, Any]


def figure_differences(
    compare: Compared, by_arm: Mapping[str, Sequence[Line]], figures: Sequence[str], curves: Sequence[str]
) -> str:
    """A table of each arm's figures less the baseline's: the mean over seeds that have both, and a 95 % t interval.

    A curve counts by its mean over the steps that both runs have, without the first and the last of these. Only curves
    of evaluations are compared: those of training are of each arm's own rows and layers. "-" without a seed that has
    both, no interval with one; a number in brackets where only some seeds have both. "" if there is nothing to show.
    """
    curves = [name for name in curves if name.startswith("eval/")]
    if not (figures or curves):
        return ""
    baseline = {line["seed"]: line for line in by_arm[compare.baseline]}
    rows = []
    for arm, lines in by_arm.items():
        if arm != compare.baseline:
            pairs = [(line, baseline[line["seed"]]) for line in lines if line["seed"] in baseline]
            found = [[_of_figure(*pair, name) for pair in pairs] for name in figures]
            found += [[_of_curve(*pair, name) for pair in pairs] for name in curves]
            rows.append([f"{arm} − {compare.baseline}", *map(_interval, found)])
    header = ["", *figures, *(f"{name}, mean in training" for name in curves)]
    note = (
        "Differences in other figures, paired by seed, with 95 % intervals for new seeds (Student's t), not corrected "
        "for their number."
    )
    return f"{table(header, rows)}\n\n{note}\n"


def _of_figure(of: Line, over: Line, name: str) -> float | None:
    return None if of.get(name) is None or over.get(name) is None else of[name] - over[name]


def _of_curve(of: Line, over: Line, name: str) -> float | None:
    both = [dict(line.get("curves", {}).get(name, ())) for line in (of, over)]
    steps = sorted(both[0].keys() & both[1].keys())[1:-1]
    return statistics.mean(both[0][step] - both[1][step] for step in steps) if steps else None


def _interval(differences: Sequence[float | None]) -> str:
    """Mean and interval of those that are defined."""
    found = [difference for difference in differences if difference is not None]
    if not found:
        return "-"
    mean, some = statistics.mean(found), f" [{len(found)}]" if len(found) < len(differences) else ""
    if len(found) < 2:
        return f"{_signed(mean)}{some}"
    half = t_quantile(0.975, len(found) - 1.0) * statistics.stdev(found) / sqrt(len(found))
    return f"{_signed(mean)} ({_signed(mean - half)} to {_signed(mean + half)}){some}"


def _signed(value: float) -> str:
    return f"{round(value, 9):+.3g}"  # a difference of rounding errors is none
