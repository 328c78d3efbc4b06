"""Curves over training, a column per group of runs and a row per metric, as an SVG file that needs nothing else.

All panels share their steps and those of a row their values, so that groups can be compared by eye.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from ral_system.report import svg
from ral_system.report.svg import Axis

_LEFT, _TOP, _WIDTH, _HEIGHT = 64, 76, 180, 130
_COLUMN, _ROW = _WIDTH + 16, _HEIGHT + 26

Curve = Sequence[tuple[int, float]]
"""One run: (step, value), in order."""


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One metric: of each group, in order, the curves of its runs. Values that are not finite are left out."""

    label: str
    groups: Mapping[str, Sequence[Curve]]


def curves(title: str, rows: Sequence[CurveRow], axis: str = "step") -> str:
    """Every run as a thin line, and where a group has several the mean of those that reached a step as a bold one.

    `axis` names what steps count.
    """
    rows = [CurveRow(row.label, {name: list(map(_finite, of)) for name, of in row.groups.items()}) for row in rows]
    names = list(rows[0].groups) if rows else []
    steps = [step for row in rows for of in row.groups.values() for curve in of for step, _ in curve]
    lefts = [_LEFT + i * _COLUMN for i in range(max((len(row.groups) for row in rows), default=0))]
    columns = [Axis(min(steps, default=0), max(steps, default=0), left, left + _WIDTH) for left in lefts]
    parts = [svg.text(left + _WIDTH / 2, _TOP - 22, name, "middle") for left, name in zip(lefts, names, strict=False)]
    for i, row in enumerate(rows):
        parts += _panels(row, columns, _TOP + i * _ROW)
    bottom = _TOP + max(len(rows) - 1, 0) * _ROW + _HEIGHT
    parts += [svg.steps_below(x_axis, bottom + 16, axis) for x_axis in columns if steps]
    return svg.document(_LEFT + len(lefts) * _COLUMN, bottom + 36, title, parts)


def _panels(row: CurveRow, columns: Sequence[Axis], top: float) -> list[str]:
    values = [value for of in row.groups.values() for curve in of for _, value in curve]
    parts = [svg.text(_LEFT, top - 6, row.label)]
    if not values:
        return [*parts, svg.text(_LEFT + 12, top + 16, "not measured")]
    y_axis = svg.linear_axis(min(values), max(values), top + _HEIGHT, top)
    for i, ((name, of), x_axis) in enumerate(zip(row.groups.items(), columns, strict=False)):
        grid = svg.grid(y_axis, x_axis.start, x_axis.end, None if i else svg.short)
        parts.append(svg.with_tooltip(f"{name}, {row.label}", grid, _lines(of, x_axis, y_axis), class_=svg.colour(0)))
    return parts


def _lines(of_group: Sequence[Curve], x_axis: Axis, y_axis: Axis) -> str:
    drawn = [(curve, "line thin") for curve in of_group if curve]
    if len(drawn) > 1:
        drawn.append((_mean([curve for curve, _ in drawn]), "line ink"))
    return "".join(svg.line([(x_axis.px(s), y_axis.px(v)) for s, v in curve], class_) for curve, class_ in drawn)


def _finite(curve: Curve) -> Curve:
    return [(step, value) for step, value in curve if isfinite(value)]


def _mean(of_group: Sequence[Curve]) -> Curve:
    by_step: dict[int, list[float]] = defaultdict(list)
    for curve in of_group:
        for step, value in curve:
            by_step[step].append(value)
    return [(step, statistics.mean(values)) for step, values in sorted(by_step.items())]
