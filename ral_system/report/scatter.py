"""A scatter plot with a name at every point, as a self-contained SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ral_system.report import svg

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 420, 64, 52, 616, 368
_INSET = 16
"""Pixels between an end of the grid and the first number of the horizontal axis."""


@dataclass(frozen=True, slots=True)
class Point:
    """A point and its name."""

    x: float
    y: float
    name: str


def scatter(points: Sequence[Point], title: str, x_label: str, y_label: str) -> str:
    """Draw at least one point. Axes surround the values; x is logarithmic if they span more than 1 : 100."""
    ys = [p.y for p in points]
    x_axis = svg.axis_around([p.x for p in points], _LEFT + _INSET, _RIGHT - _INSET)
    y_axis = svg.linear_axis(min(ys), max(ys), _BOTTOM, _TOP)
    middle = (_TOP + _BOTTOM) / 2
    parts = [
        svg.grid(y_axis, _LEFT, _RIGHT, svg.short),
        svg.numbers_below(x_axis, _BOTTOM + 20, x_axis.ticks, svg.short),
        svg.text(_WIDTH / 2, _HEIGHT - 12, f"{x_label}, logarithmic" if x_axis.log else x_label, "middle"),
        svg.text(18, middle, y_label, "middle", transform=f"rotate(-90 18 {middle})"),
    ]
    lowest = 0.0  # of the names so far, from the top: one below the other where points crowd
    for p in sorted(points, key=lambda p: -p.y):
        x, y = x_axis.px(p.x), y_axis.px(p.y)
        lowest = max(y + 4, lowest + 12)
        parts.append(_point(p, x, y, lowest))
    return svg.document(_WIDTH, _HEIGHT, title, parts)


def _point(p: Point, x: float, y: float, name_y: float) -> str:
    aside, anchor = (-1, "end") if x > _WIDTH * 0.6 else (1, "start")
    return svg.with_tooltip(
        f"{p.name}: {p.x:.4g}, {p.y:.4g}",
        svg.line([(x, y), (x + 9 * aside, name_y - 4)], "line thin"),
        svg.point((x, y), 5),
        svg.text(x + 11 * aside, name_y, p.name, anchor),
        class_=svg.colour(0),
    )
