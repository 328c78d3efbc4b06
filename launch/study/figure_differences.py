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

    A curve counts by its mean between the first and the last step. "-" without a seed that has both, no interval with
    one. "" if the study shows neither figures nor curves.
    """
    names = [*figures, *(f"{name}, mean in training" for name in curves)]
    if not names:
        return ""
    baseline = _values(by_arm[compare.baseline], figures, curves)
    rows = []
    for arm, lines in by_arm.items():
        if arm != compare.baseline:
            of = _values(lines, figures, curves)
            shared = [seed for seed in of if seed in baseline]
            pairs = [[(of[seed][at], baseline[seed][at]) for seed in shared] for at in range(len(names))]
            rows.append([f"{arm} − {compare.baseline}", *(_interval(each) for each in pairs)])
    note = (
        "Differences in other figures, paired by seed, with 95 % intervals for new seeds (Student's t), not corrected "
        "for their number."
    )
    return f"{table(['', *names], rows)}\n\n{note}\n"


def _values(lines: Sequence[Line], figures: Sequence[str], curves: Sequence[str]) -> dict[int, list[float | None]]:
    """The figures of each seed, then its curves' means."""
    return {
        line["seed"]: [
            *(line.get(name) for name in figures),
            *(_between(line.get("curves", {}).get(name, ())) for name in curves),
        ]
        for line in lines
    }


def _between(curve: Sequence[tuple[int, float]]) -> float | None:
    inner = [value for _, value in curve[1:-1]]
    return statistics.mean(inner) if inner else None


def _interval(pairs: Sequence[tuple[float | None, float | None]]) -> str:
    """Mean difference and interval over the pairs that are whole."""
    found = [of - over for of, over in pairs if of is not None and over is not None]
    if not found:
        return "-"
    mean = statistics.mean(found)
    if len(found) < 2:
        return _signed(mean)
    half = t_quantile(0.975, len(found) - 1.0) * statistics.stdev(found) / sqrt(len(found))
    return f"{_signed(mean)} ({_signed(mean - half)} to {_signed(mean + half)})"


def _signed(value: float) -> str:
    return f"{round(value, 9):+.3g}"  # a difference of rounding errors is none
