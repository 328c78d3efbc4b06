"""Curves over training, with a column per group of runs and a row per metric, as a self-contained SVG file.

All panels share their steps and those of a row their values, so groups can be compared by eye.
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
_COLUMNS, _BETWEEN = 6, 72
"""Number of groups side by side, and pixels between rows of groups."""

Curve = Sequence[tuple[int, float]]
"""Values of one run: (step, value), in order."""


@dataclass(frozen=True, slots=True)
class CurveRow:
    """Curves of one metric: those of the runs of each group, in order. Values that are not finite are left out."""

    label: str
    groups: Mapping[str, Sequence[Curve]]


def curves(title: str, rows: Sequence[CurveRow], axis: str = "step") -> str:
    """Draw every run as a thin line, and of a group of several the mean of those that reached a step as a bold one.

    Groups without any value are left out; after six, groups continue below. `axis` is the name of the steps.
    """
    rows = [CurveRow(row.label, {name: list(map(_finite, of)) for name, of in row.groups.items()}) for row in rows]
    names = [name for name in (rows[0].groups if rows else ()) if any(any(row.groups.get(name, ())) for row in rows)]
    steps = [step for row in rows for of in row.groups.values() for curve in of for step, _ in curve]
    lefts = [_LEFT + i * _COLUMN for i in range(min(len(names), _COLUMNS))]
    columns = [Axis(min(steps, default=0), max(steps, default=0), left, left + _WIDTH) for left in lefts]
    parts, top = [], _TOP
    for first in range(0, max(len(names), 1), _COLUMNS):
        shown = names[first : first + _COLUMNS]
        for x_axis, name in zip(columns, shown, strict=False):
            parts.append(svg.text(x_axis.start + _WIDTH / 2, top - 22, name, "middle"))
        for row in rows:
            parts += _panels(row, shown, columns, top)
            top += _ROW
        bottom = max(top - _ROW, _TOP) + _HEIGHT
        parts += [svg.steps_below(x_axis, bottom + 16, axis) for x_axis, _ in zip(columns, shown, strict=False)]
        top = bottom + _BETWEEN
    return svg.document(_LEFT + max(len(lefts), 1) * _COLUMN, top - _BETWEEN + 36, title, parts)


def _panels(row: CurveRow, names: Sequence[str], columns: Sequence[Axis], top: float) -> list[str]:
    """Draw a metric of several groups."""
    values = [value for of in row.groups.values() for curve in of for _, value in curve]
    parts = [svg.text(_LEFT, top - 6, row.label)]
    if not values:
        return [*parts, svg.text(_LEFT + 12, top + 16, "not measured")]
    y_axis = svg.linear_axis(min(values), max(values), top + _HEIGHT, top)
    for i, (name, x_axis) in enumerate(zip(names, columns, strict=False)):
        grid = svg.grid(y_axis, x_axis.start, x_axis.end, None if i else svg.short)
        lines = _lines(row.groups.get(name, ()), x_axis, y_axis)
        parts.append(svg.with_tooltip(f"{name}, {row.label}", grid, lines, class_=svg.colour(0)))
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
