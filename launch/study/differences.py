"""Differences between a study's arms, paired by seed and question: a table, and a chart of intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan
from typing import Any

import numpy as np

from ral_system.evaluation.paired import Difference, holm, paired_difference, seeds_needed
from ral_system.launch.study.files import Compared
from ral_system.launch.study.table import table
from ral_system.report.forest import Interval, forest

ALL = "all"

Lines = Sequence[Mapping[str, Any]]
"""Lines of study.jsonl, one arm's, a seed each."""


@dataclass(frozen=True, slots=True)
class Differences:
    """What `differences` found, as Markdown and as SVG."""

    table: str
    chart: str


def differences(compare: Compared, by_arm: Mapping[str, Lines]) -> Differences:
    """Compare every arm with the baseline, and some with their controls, on the seeds that both have; in all questions
    and in each of their categories.
    """
    pairs = [(arm, compare.baseline) for arm in by_arm if arm != compare.baseline]
    pairs += [(arm, control) for arm, controls in compare.controls.items() for control in controls]
    found = {pair: _paired(*(by_arm[arm] for arm in pair)) for pair in pairs}
    categories = list(dict.fromkeys(category for by_category in found.values() for category in by_category))
    whole = {pair: by_category.get(ALL) for pair, by_category in found.items()}
    adjusted = holm({arm: nan if (d := whole[arm, compare.baseline]) is None else d.p for arm in compare.claims})
    level = 1 - 0.05 / max(1, len(compare.claims))
    worth = f"{100 * compare.difference:g} points"
    header = ["points", "seeds", *categories, "p", "p, of claims", f"seeds for {worth}"]
    rows = []
    for (arm, other), by_category in found.items():
        claim, d = adjusted.get(arm) if other == compare.baseline else None, by_category.get(ALL)
        cells = [f"{arm} − {other}", str(_seeds(by_arm[arm], by_arm[other]))]
        cells += [_points(by_category.get(category)) for category in categories]
        cells += ["-" if d is None else _p(d.p), "" if claim is None else _p(claim)]
        rows.append([*cells, _needed(d, compare.difference, level if claim is not None else 0.95)])
    note = (
        "Differences in accuracy, in points of 100, with 95 % intervals for new seeds and new questions. Claims are "
        f"corrected for their number (Holm). The last column: seeds that find {worth} with a power of 0.8 on as many "
        "questions, at 5 %, or for a claim at 5 % divided by their number; above 10,000 it takes more questions.\n"
    )
    panels = {
        category: [
            Interval(f"{arm} − {other}", 100 * d.mean, 100 * d.low, 100 * d.high)
            for (arm, other), by_category in found.items()
            if (d := by_category.get(category)) is not None
        ]
        for category in categories
    }
    return Differences(
        f"{table(header, rows)}\n\n{note}",
        forest("Differences in accuracy, in points", panels, band=100 * compare.difference),
    )


def _paired(of: Lines, over: Lines) -> dict[str, Difference]:
    """Return the difference in all questions and in each category; {} where no seed has both."""
    both = _scores(of), _scores(over)
    seeds = [seed for seed in both[0] if seed in both[1]]
    if not seeds:
        return {}
    shared = [c for c in both[0][seeds[0]] if all(c in scores[seed] for scores in both for seed in seeds)]
    of_SQ, over_SQ = ({c: np.array([scores[seed][c] for seed in seeds]) for c in shared} for scores in both)
    whole = paired_difference(*(np.concatenate(list(by_category.values()), 1) for by_category in (of_SQ, over_SQ)))
    return {ALL: whole, **{c: paired_difference(of_SQ[c], over_SQ[c]) for c in shared}}


def _scores(lines: Lines) -> dict[int, dict[str, list[float]]]:
    return {line["seed"]: line["scores"] for line in lines if line.get("scores")}


def _seeds(of: Lines, over: Lines) -> int:
    return len(_scores(of).keys() & _scores(over).keys())


def _points(d: Difference | None) -> str:
    if d is None:
        return "-"
    if isnan(d.low):
        return f"{100 * d.mean:+.1f}"
    return f"{100 * d.mean:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})"


def _p(p: float) -> str:
    if isnan(p):
        return "-"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _needed(d: Difference | None, difference: float, level: float) -> str:
    if d is None or d.components is None:
        return "-"
    seeds = seeds_needed(d.components, d.questions, difference, level=level)
    return f"{seeds:.0f}" if isfinite(seeds) else "> 10,000"
