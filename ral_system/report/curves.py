"""Curves over training, a column per group of runs and a row per metric, as an SVG file that needs nothing else.

All panels share their steps and those of a row their values, so that groups can be compared by eye.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite

_LEFT, _TOP, _RIGHT, _FOOT = 64, 76, 24, 44
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 180, 130, 16, 26

Curve = Sequence[tuple[int, float]]
"""One run: (step, value), in order."""


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One metric: of each group, in order, the curves of its runs. Values that are not finite are left out."""

    label: str
    groups: Mapping[str, Sequence[Curve]]


def curves(title: str, rows: Sequence[CurveRow]) -> str:
    """Every run as a thin line, and where a group has several the mean of those that reached a step as a bold one."""
    columns = max((len(row.groups) for row in rows), default=0)
    width = _LEFT + columns * (_WIDTH + _GAP_X) - _GAP_X + _RIGHT
    height = _TOP + len(rows) * (_HEIGHT + _GAP_Y) - _GAP_Y + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11" fill="#16181d">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        f'<text x="16" y="26" font-size="15">{escape(title)}</text>'
    ]
    for i, name in enumerate(rows[0].groups if rows else ()):
        middle = _LEFT + i * (_WIDTH + _GAP_X) + _WIDTH / 2
        parts.append(f'<text x="{middle}" y="{_TOP - 22}" text-anchor="middle" font-size="12">{escape(name)}</text>')
    rows = [CurveRow(row.label, {name: [_finite(c) for c in of] for name, of in row.groups.items()}) for row in rows]
    steps = [step for row in rows for of_group in row.groups.values() for curve in of_group for step, _ in curve]
    first, last = (min(steps), max(steps)) if steps else (0, 0)
    for i, row in enumerate(rows):
        parts += _draw(row, first, last, _TOP + i * (_HEIGHT + _GAP_Y), steps_below=i == len(rows) - 1)
    return "".join([*parts, "</svg>\n"])


def _draw(row: CurveRow, first: int, last: int, top: float, *, steps_below: bool) -> list[str]:
    values = [value for of_group in row.groups.values() for curve in of_group for _, value in curve]
    parts = [f'<text x="{_LEFT}" y="{top - 6}" fill="#5d636e">{escape(row.label)}</text>']
    if not values:
        return [*parts, f'<text x="{_LEFT + 12}" y="{top + 16}" fill="#5d636e">not measured</text>']
    low, high = min(values), max(values)
    for value in sorted({low, high}):
        y = top + (1 - _share(value, low, high)) * _HEIGHT + 4
        parts.append(f'<text x="{_LEFT - 8}" y="{y:.1f}" text-anchor="end">{value:.3g}</text>')
    for i, (name, of_group) in enumerate(row.groups.items()):
        left = _LEFT + i * (_WIDTH + _GAP_X)

        def path(curve: Curve, left: float = left) -> str:
            at = [
                (left + _share(step, first, last) * _WIDTH, top + (1 - _share(value, low, high)) * _HEIGHT)
                for step, value in curve
            ]
            return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)

        frame = f'<path d="M{left} {top}V{top + _HEIGHT}H{left + _WIDTH}" fill="none" stroke="#8b919b"/>'
        parts.append(f"<g><title>{escape(name)}, {escape(row.label)}</title>{frame}")
        drawn = [curve for curve in of_group if curve]
        for curve in drawn:
            parts.append(f'<path d="{path(curve)}" fill="none" stroke="#2a6fdb" stroke-opacity="0.45"/>')
        if len(drawn) > 1:
            parts.append(f'<path d="{path(_mean(drawn))}" fill="none" stroke="#16181d" stroke-width="2"/>')
        if steps_below:
            labels = ((0.0, "start", str(first)), (0.5, "middle", "step"), (1.0, "end", str(last)))
            for at, anchor, label in labels:
                x, y = left + at * _WIDTH, top + _HEIGHT + 16
                parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#5d636e">{label}</text>')
        parts.append("</g>")
    return parts


def _finite(curve: Curve) -> Curve:
    return [(step, value) for step, value in curve if isfinite(value)]


def _mean(of_group: Sequence[Curve]) -> Curve:
    by_step: dict[int, list[float]] = defaultdict(list)
    for curve in of_group:
        for step, value in curve:
            by_step[step].append(value)
    return [(step, statistics.mean(values)) for step, values in sorted(by_step.items())]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5
