"""Dots by group, one panel per figure, as an SVG file that needs nothing else: every run is seen, and the mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite, log10

_LEFT, _TOP, _RIGHT, _GROUP, _HEIGHT, _FOOT = 64, 76, 40, 108, 260, 44


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure: of each group, in order, the values of its runs; a group may have none, and infinite ones are left
    out.
    """

    label: str
    groups: Mapping[str, Sequence[float]]


def dots(title: str, panels: Sequence[Panel]) -> str:
    """Panels side by side, each with an axis of its own from its smallest to its largest value.

    Logarithmic where that is more than 1 : 100.
    """
    widths = [_LEFT + _GROUP * len(panel.groups) + _RIGHT for panel in panels]
    width, height = sum(widths), _TOP + _HEIGHT + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11" fill="#16181d">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        f'<text x="16" y="26" font-size="15">{escape(title)}</text>'
    ]
    for index, panel in enumerate(panels):
        parts += _draw(panel, sum(widths[:index]))
    return "".join([*parts, "</svg>\n"])


def _draw(panel: Panel, left: int) -> list[str]:
    groups = {name: [value for value in group if isfinite(value)] for name, group in panel.groups.items()}
    values = [value for group in groups.values() for value in group]
    x0, x1, bottom = left + _LEFT, left + _LEFT + _GROUP * len(panel.groups), _TOP + _HEIGHT
    log = bool(values) and min(values) > 0 and max(values) / min(values) > 100
    label = f"{panel.label}, logarithmic" if log else panel.label
    parts = [
        f'<text x="{x0}" y="{_TOP - 18}" fill="#5d636e">{escape(label)}</text>'
        f'<path d="M{x0} {_TOP}V{bottom}H{x1}" fill="none" stroke="#8b919b"/>'
    ]
    if not values:
        return [*parts, f'<text x="{x0 + 12}" y="{_TOP + 16}" fill="#5d636e">not measured</text>']
    low, high = min(values), max(values)

    def y_px(value: float) -> float:
        a, b, v = (log10(n) if log else n for n in (low, high, value))
        share = (v - a) / (b - a) if b > a else 0.5
        return round(bottom - (0.06 + 0.88 * share) * _HEIGHT, 1)

    for value in sorted({low, high}):
        parts.append(f'<text x="{x0 - 8}" y="{y_px(value) + 4}" text-anchor="end">{value:.3g}</text>')
    for index, (name, group) in enumerate(groups.items()):
        middle = x0 + _GROUP * (index + 0.5)
        parts.append(f'<text x="{middle}" y="{bottom + 18}" text-anchor="middle">{escape(name)}</text>')
        if not group:
            continue
        mean = statistics.mean(group)
        parts.append(
            f"<g><title>{escape(name)}: mean {mean:.4g} of {len(group)}</title>"
            f'<path d="M{middle - 24} {y_px(mean)}h48" stroke="#16181d" stroke-width="2"/>'
        )
        for i, value in enumerate(group):
            x = middle + 12 * (i - (len(group) - 1) / 2)
            parts.append(f'<circle cx="{x}" cy="{y_px(value)}" r="5" fill="#2a6fdb" fill-opacity="0.75"/>')
        parts.append(f'<text x="{middle + 28}" y="{y_px(mean) + 4}" fill="#5d636e">{mean:.3g}</text></g>')
    return parts
