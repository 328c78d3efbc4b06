"""A forest plot: differences and their intervals, a row for each comparison and a panel for each category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from ral_system.report import svg

_TOP, _ROW, _WIDTH, _GAP, _FOOT = 92, 22, 170, 36, 34
_BANDS = 2
"""Largest number of bands that the axis shows on each side."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference and the ends of its interval, which are NaN where there is none."""

    label: str
    value: float
    low: float
    high: float


def forest(title: str, panels: Mapping[str, Sequence[Interval]], band: float) -> str:
    """Draw panels side by side with a common axis. Grey marks −band to band: differences that are too small to matter.

    Values beyond two bands are drawn at the edge.
    """
    labels = list(dict.fromkeys(i.label for panel in panels.values() for i in panel))
    ends = [v for panel in panels.values() for i in panel for v in (i.value, i.low, i.high) if isfinite(v)]
    low, high = max(min([*ends, -band]), -_BANDS * band), min(max([*ends, band]), _BANDS * band)
    bottom = _TOP + _ROW * len(labels)
    left = 24 + max([svg.text_width(label) for label in labels], default=0.0)
    at = {label: _TOP + _ROW * (place + 0.5) for place, label in enumerate(labels)}
    parts = [svg.text(left - 10, y + 4, label, "end") for label, y in at.items()]
    for place, (name, panel) in enumerate(panels.items()):
        start = left + place * (_WIDTH + _GAP)
        axis = svg.linear_axis(low, high, start, start + _WIDTH)
        parts.append(_panel(name, panel, axis, at, bottom, band))
    width = left + len(panels) * (_WIDTH + _GAP)
    note = f"95 % intervals for new seeds and new questions; grey: within {band:g} points of zero"
    note += "; larger differences are at the edge" if ends and max(map(abs, ends)) > _BANDS * band else ""
    return svg.document(width, bottom + _FOOT, title, parts, note)


def _panel(
    name: str, panel: Sequence[Interval], axis: svg.Axis, at: Mapping[str, float], bottom: float, band: float
) -> str:
    low, zero, high = (axis.px(v) for v in (-band, 0, band))
    parts = [
        svg.text(axis.start, _TOP - 14, name),
        svg.element("rect", class_="band", x=low, y=_TOP, width=high - low, height=bottom - _TOP),
        svg.element("line", class_="zero", x1=zero, x2=zero, y1=_TOP, y2=bottom),
        svg.numbers_below(axis, bottom + 16, axis.ticks, svg.short),
    ]
    for i in panel:
        y, says = at[i.label], f"{i.label}: {i.value:+.2f}"
        line = []
        if isfinite(i.low) and isfinite(i.high):
            says += f" ({i.low:+.2f} to {i.high:+.2f})"
            line.append(svg.line([(axis.px(i.low), y), (axis.px(i.high), y)], "interval"))
        clear = isfinite(i.low) and (i.low > 0 or i.high < 0)
        parts.append(svg.with_tooltip(says, *line, svg.point((axis.px(i.value), y), 4), class_=svg.colour(int(clear))))
    return "".join(parts)
