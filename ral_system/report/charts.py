"""Line and stacked-bar charts as inline SVG. The values for the hover tooltip travel beside each chart as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from ral_system.report.load import Points

Unit = Literal["number", "percent", "seconds", "nats"]

WIDTH, HEIGHT = 400, 188
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 22
MAX_ROWS = 1500  # beyond it neighbouring steps are merged into their extremes
_MARKER_ROWS = 16
_COLOURS = 8


@dataclass(frozen=True, slots=True)
class Interval:
    """Confidence interval of a point, and its sample.

    Example: `Interval(0.87, 0.92, "500 questions")`
    """

    low: float
    high: float
    measured_on: str


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or one layer of a stack. `colour` is the index of a colour of the page's palette."""

    key: str
    label: str
    points: Points
    colour: int
    intervals: Mapping[int, Interval] = field(default_factory=dict)
    """Error bar per step."""


@dataclass(frozen=True, slots=True)
class Chart:
    """What to draw. `note` is one sentence on how to read it; `limit` a dashed line with its name."""

    id: str
    title: str
    note: str
    series: list[Series]
    kind: Literal["line", "stack"] = "line"
    unit: Unit = "number"
    log: bool = False
    top: float | None = None
    limit: tuple[str, float] | None = None
    axis: str = "RL step"


def figure(chart: Chart) -> str:
    """The chart as an HTML `<figure>`; empty when no series has a value to draw."""
    series = [s for s in chart.series if any(value is not None for _, value in s.points)]
    if not series:
        return ""
    steps = _thin(series)
    values = {s.key: dict(s.points) for s in series}
    tops = _stack(series, values, steps) if chart.kind == "stack" else values
    drawn = [v for s in series for step in steps if (v := tops[s.key].get(step)) is not None]
    drawn += [end for s in series for step, i in s.intervals.items() if step in steps for end in (i.low, i.high)]
    y_axis = _log_axis(drawn, chart.limit) if chart.log else _linear_axis(drawn, chart)
    x_px = _scale(steps[0], steps[-1], LEFT, WIDTH - RIGHT, chart.kind == "stack", len(steps))
    y_px = {s.key: {step: y_axis.px(v) for step, v in tops[s.key].items() if v is not None} for s in series}
    if chart.kind == "stack":
        marks = _bars(series, values, y_px, steps, x_px, y_axis)
    else:
        marks = _intervals(series, steps, x_px, y_axis) + _lines(series, y_px, steps, x_px)
    value = f'<b class="value">{_text(_last(series[0].points), chart.unit)}</b>' if len(series) == 1 else ""
    legend = "".join(
        f'<li><i style="background:var(--s{s.colour % _COLOURS})"></i>{escape(s.label)} '
        f"<b>{_text(_shown(s, chart), chart.unit)}</b></li>"
        for s in series
    )
    hover = {
        "x": [round(x_px(step), 2) for step in steps],
        "step": steps,
        "axis": chart.axis,
        "series": [
            {
                "label": s.label,
                "colour": f"var(--s{s.colour % _COLOURS})",
                "y": [y_px[s.key].get(step) for step in steps],
                "text": [_hover_text(s, step, values[s.key].get(step), chart.unit) for step in steps],
            }
            for s in series
        ],
    }
    label = escape(f"{chart.title}: " + ", ".join(f"{s.label} {_text(_shown(s, chart), chart.unit)}" for s in series))
    return (
        f'<figure data-chart="{chart.id}"><figcaption><h3>{escape(chart.title)}{value}</h3><p>{escape(chart.note)}</p>'
        f"{'' if value else f'<ul class=legend>{legend}</ul>'}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{label}">'
        f"{_frame(y_axis, chart, steps, x_px)}{marks}"
        '<g class="cursor"></g></svg>'
        f'<script type="application/json">{_inline_json(hover)}</script></figure>'
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    ticks: list[float]
    log: bool = False

    def px(self, value: float) -> float:
        """Vertical position, kept inside the frame."""
        if self.log:
            share = (math.log10(max(value, self.low)) - math.log10(self.low)) / math.log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM), 2)


def _linear_axis(values: list[float], chart: Chart) -> _Axis:
    low, high = min(0.0, *values), max(values)
    if chart.limit and chart.limit[1] <= 3 * max(high, 0.0):
        high = max(high, chart.limit[1])
    if chart.top is not None:
        high = max(high, chart.top)
    if high <= low:
        high = low + 1.0
    raw = (high - low) / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return _Axis(first * step, last * step, [i * step for i in range(first, last + 1)])


def _log_axis(values: list[float], limit: tuple[str, float] | None) -> _Axis:
    positive = [v for v in [*values, limit[1] if limit else 0.0] if v > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive)) + 1e-9), math.ceil(math.log10(max(positive)) - 1e-9)
    high = max(high, low + 1)
    every = max(1, math.ceil((high - low) / 5))
    return _Axis(10.0**low, 10.0**high, [10.0**e for e in range(low, high + 1, every)], log=True)


class _scale:  # noqa: N801  a function with state; named as one
    """Step → horizontal pixel. Bars keep half a bar's width of room on both sides."""

    def __init__(self, first: int, last: int, left: float, right: float, bars: bool, count: int) -> None:
        self.bar = (right - left) / max(count, 1)
        room = self.bar / 2 if bars else 3.0
        self.first, self.span = first, last - first
        self.left, self.right = left + room, right - room

    def __call__(self, step: float) -> float:
        share = (step - self.first) / self.span if self.span else 0.5
        return self.left + share * (self.right - self.left)


def _frame(y_axis: _Axis, chart: Chart, steps: list[int], x_px: _scale) -> str:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.px(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        label = _tick(tick, chart.unit)
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.2f}" text-anchor="end">{label}</text>')
    for step, anchor in _step_labels(steps):
        parts.append(f'<text class="tick" x="{x_px(step):.2f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{step:,}</text>')
    centre = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick axis" x="{centre}" y="{HEIGHT - 6}" text-anchor="middle">{chart.axis}</text>')
    if chart.limit and y_axis.low <= chart.limit[1] <= y_axis.high:
        name, value = chart.limit
        y = y_axis.px(value)
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        end = WIDTH - RIGHT
        parts.append(f'<text class="limit-name" x="{end}" y="{y + 11}" text-anchor="end">{escape(name)}</text>')
    return "".join(parts)


def _step_labels(steps: list[int]) -> list[tuple[int, str]]:
    return [(steps[0], "middle")] if len(steps) == 1 else [(steps[0], "start"), (steps[-1], "end")]


def _intervals(series: list[Series], steps: list[int], x_px: _scale, y_axis: _Axis) -> str:
    parts = []
    for s in series:
        shown = [(x_px(step), s.intervals[step]) for step in steps if step in s.intervals]
        cap = 3 if len(shown) <= _MARKER_ROWS else 0
        bars = (
            f"M{x - cap:.2f} {y_axis.px(i.high)}h{2 * cap}M{x:.2f} {y_axis.px(i.high)}V{y_axis.px(i.low)}"
            f"M{x - cap:.2f} {y_axis.px(i.low)}h{2 * cap}"
            for x, i in shown
        )
        if shown:
            colour = f"var(--s{s.colour % _COLOURS})"
            parts.append(
                f'<path class="interval" data-interval="{escape(s.key)}" stroke="{colour}" d="{"".join(bars)}"/>'
            )
    return "".join(parts)


def _lines(series: list[Series], y_px: dict[str, dict[int, float]], steps: list[int], x_px: _scale) -> str:
    parts = []
    for s in series:
        path, pen_down, dots = [], False, []
        recorded = {step for step, _ in s.points}
        for step in (p for p in steps if p in recorded):
            y = y_px[s.key].get(step)
            if y is not None:
                path.append(f"{'L' if pen_down else 'M'}{x_px(step):.2f} {y}")
                dots.append(f'<circle cx="{x_px(step):.2f}" cy="{y}" r="2.6"/>')
            pen_down = y is not None
        colour = f"var(--s{s.colour % _COLOURS})"
        parts.append(f'<path class="line" data-series="{escape(s.key)}" stroke="{colour}" d="{"".join(path)}"/>')
        if len(dots) <= _MARKER_ROWS:
            parts.append(f'<g class="dots" fill="{colour}">{"".join(dots)}</g>')
    return "".join(parts)


def _bars(
    series: list[Series],
    values: dict[str, dict[int, float | None]],
    y_px: dict[str, dict[int, float]],
    steps: list[int],
    x_px: _scale,
    y_axis: _Axis,
) -> str:
    base = {step: y_axis.px(0.0) for step in steps}
    width = max(0.5, min(x_px.bar * 0.8, 28.0))
    parts = []
    for s in series:
        path = []
        for step in (p for p in steps if values[s.key].get(p) is not None):
            y = y_px[s.key][step]
            path.append(f"M{x_px(step) - width / 2:.2f} {base[step]}V{y}h{width:.2f}V{base[step]}z")
            base[step] = y
        colour = f"var(--s{s.colour % _COLOURS})"
        parts.append(f'<path class="bar" data-series="{escape(s.key)}" fill="{colour}" d="{"".join(path)}"/>')
    return "".join(parts)


def _stack(
    series: list[Series], values: dict[str, dict[int, float | None]], steps: list[int]
) -> dict[str, dict[int, float | None]]:
    """Upper edge of each layer: the layers below it and its own value."""
    height = dict.fromkeys(steps, 0.0)
    tops: dict[str, dict[int, float | None]] = {}
    for s in series:
        for step in steps:
            height[step] += values[s.key].get(step) or 0.0
        tops[s.key] = dict(height)
    return tops


def _thin(series: list[Series]) -> list[int]:
    """The steps to draw: all of them, or each bucket's extremes of every series, so that no spike is lost."""
    steps = sorted({step for s in series for step, _ in s.points})
    if len(steps) <= MAX_ROWS:
        return steps
    buckets = max(1, MAX_ROWS // (2 * len(series)))
    keep = {steps[0], steps[-1]}
    for s in series:
        size = math.ceil(len(s.points) / buckets)
        for start in range(0, len(s.points), size):
            bucket = [(value, step) for step, value in s.points[start : start + size] if value is not None]
            if bucket:
                keep |= {min(bucket)[1], max(bucket)[1]}
    return sorted(keep)


def _shown(series: Series, chart: Chart) -> float | None:
    """The legend's number: the newest value of a line, the mean of a layer."""
    if chart.kind == "line":
        return _last(series.points)
    known = [value for _, value in series.points if value is not None]
    return sum(known) / len(known)


def _last(points: Points) -> float | None:
    return next((value for _, value in reversed(points) if value is not None), None)


def _tick(value: float, unit: Unit) -> str:
    if unit == "percent":
        return f"{value * 100:.3g}%"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _text(value: float | None, unit: Unit) -> str:
    if value is None:
        return "n/a"
    if unit == "percent":
        return f"{value * 100:.1f}%"
    suffix = {"seconds": " s", "nats": " nats"}.get(unit, "")
    return _tick(value, unit) + suffix


def _hover_text(series: Series, step: int, value: float | None, unit: Unit) -> str:
    text, interval = _text(value, unit), series.intervals.get(step)
    if interval is None:
        return text
    return f"{text} ({_text(interval.low, unit)} to {_text(interval.high, unit)}, {interval.measured_on})"


def _inline_json(value: object) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
