"""Dots by group, one panel per figure, as a self-contained SVG file: every run, and their mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from ral_system.report import svg

_LEFT, _TOP, _RIGHT, _GROUP, _BOTTOM, _FOOT = 64, 76, 40, 108, 336, 36


@dataclass(frozen=True, slots=True)
class Panel:
    """Values of one figure: those of the runs of each group, in order. A group may have none; infinite ones are left
    out."""

    label: str
    groups: Mapping[str, Sequence[float]]


def dots(title: str, panels: Sequence[Panel]) -> str:
    """Draw panels side by side, each with its own axis around its values.

    An axis is logarithmic if its values span more than 1 : 100.
    """
    parts, left = [], 0
    for panel in panels:
        parts.append(_panel(panel, left + _LEFT))
        left += _LEFT + _GROUP * len(panel.groups) + _RIGHT
    return svg.document(left, _BOTTOM + _FOOT, title, parts)


def _panel(panel: Panel, left: float) -> str:
    groups = {name: [value for value in group if isfinite(value)] for name, group in panel.groups.items()}
    values = [value for group in groups.values() for value in group]
    if not values:
        return svg.text(left, _TOP - 18, panel.label) + svg.text(left + 12, _TOP + 16, "not measured")
    y_axis = svg.axis_around(values, _BOTTOM, _TOP)
    label = f"{panel.label}, logarithmic" if y_axis.log else panel.label
    parts = [svg.text(left, _TOP - 18, label), svg.grid(y_axis, left, left + _GROUP * len(groups), svg.short)]
    for index, (name, group) in enumerate(groups.items()):
        middle = left + _GROUP * (index + 0.5)
        parts.append(svg.text(middle, _BOTTOM + 20, name, "middle"))
        if group:
            parts.append(_group(name, group, middle, y_axis))
    return "".join(parts)


def _group(name: str, group: Sequence[float], middle: float, y_axis: svg.Axis) -> str:
    mean = statistics.mean(group)
    y = y_axis.px(mean)
    return svg.with_tooltip(
        f"{name}: mean {mean:.4g} of {len(group)}",
        svg.line([(middle - 24, y), (middle + 24, y)], "line ink"),
        *(svg.point((middle + 12 * (i - (len(group) - 1) / 2), y_axis.px(value)), 5) for i, value in enumerate(group)),
        svg.text(middle + 28, y + 4, svg.short(mean)),
        class_=svg.colour(0),
    )
