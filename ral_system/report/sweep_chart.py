"""A figure of several models over one axis, with intervals, as a self-contained SVG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ral_system.report import svg

_HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 400, 64, 64, 490, 348
_INSET = 14


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """A model at one value of the axis, placed at its mean input. `low` and `high` are the ends of its interval."""

    x: float
    y: float
    low: float
    high: float


def sweep_chart(title: str, x_label: str, y_label: str, lines: Mapping[str, Sequence[SweepPoint]]) -> str:
    """Draw a line per model, in the order given, with a logarithmic x axis. Needs at least one point."""
    points = [p for line in lines.values() for p in line]
    xs = sorted({p.x for p in points})
    x_axis = svg.Axis(xs[0], xs[-1], _LEFT + _INSET, _RIGHT - _INSET, log=True)
    y_axis = svg.linear_axis(min(p.low for p in points), max(p.high for p in points), _BOTTOM, _TOP, 6)
    parts = [
        svg.grid(y_axis, _LEFT, _RIGHT, svg.short),
        svg.numbers_below(x_axis, _BOTTOM + 16, xs, lambda x: f"{x:.4g}"),
        svg.text((_LEFT + _RIGHT) / 2, _HEIGHT - 12, x_label, "middle"),
    ]
    for i, (name, line) in enumerate(lines.items()):
        aside = 3.0 * (i - (len(lines) - 1) / 2)  # bars must not hide each other
        parts.append(svg.legend(_RIGHT + 12, _TOP + 12 + 18 * i, name, svg.colour(i)))
        parts.append(_line(name, sorted(line, key=lambda p: p.x), svg.colour(i), aside, x_axis, y_axis))
    width = _RIGHT + 52 + max(svg.text_width(name) for name in lines)
    return svg.document(width, _HEIGHT, title, parts, f"{y_label}; bars are 95 % intervals over questions")


def _line(name: str, line: Sequence[SweepPoint], class_: str, aside: float, x_axis: svg.Axis, y_axis: svg.Axis) -> str:
    at = [(x_axis.px(p.x) + aside, y_axis.px(p.y)) for p in line]
    points = (
        svg.with_tooltip(
            f"{name} at {p.x:.4g}: {p.y:.4g} ({p.low:.4g} to {p.high:.4g})",
            svg.error_bars([(x, y_axis.px(p.high), y_axis.px(p.low))], cap=0),
            svg.point((x, y), 4),
        )
        for (x, y), p in zip(at, line, strict=True)
    )
    return svg.element("g", svg.line(at) + "".join(points), class_=class_)
