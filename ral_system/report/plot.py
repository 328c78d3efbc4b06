"""Drawing of a chart of the report: axes, grid, lines with error bars or stacked bars."""

from __future__ import annotations

from dataclasses import dataclass

from ral_system.report import svg
from ral_system.report.series import Chart, Series, on_axis, stacked, steps_to_draw
from ral_system.report.svg import Axis

WIDTH, HEIGHT = 400, 188
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, WIDTH - 10, 12, HEIGHT - 22
_MOST_DOTS = 16
"""Lines of more points have no dots, and their error bars no caps."""


@dataclass(frozen=True, slots=True)
class Plot:
    """Positions of the values of a chart. Lists have an entry per series, dicts one per step."""

    chart: Chart
    series: list[Series]
    steps: list[int]
    values: list[dict[int, float | None]]
    """Recorded values."""
    heights: list[dict[int, float]]
    """Heights at which values are drawn: in a stack on top of the layers below, otherwise the known values."""
    x: Axis
    y: Axis
    bar_width: float


def place(chart: Chart, series: list[Series]) -> Plot:
    """Choose steps and axes for the series, which have values."""
    steps, values = steps_to_draw(series), [dict(s.points) for s in series]
    known = [{step: v for step in steps if (v := of.get(step)) is not None} for of in values]
    heights = stacked(series, steps) if chart.kind == "stack" else known
    ends = [end for s in series for step, i in s.intervals.items() if step in steps for end in (i.low, i.high)]
    y_axis = _y_axis(chart, [height for of in heights for height in of.values()] + ends)
    room = (_RIGHT - _LEFT) / len(steps)
    inset = room / 2 if chart.kind == "stack" else 3.0
    x_axis = Axis(steps[0], steps[-1], _LEFT + inset, _RIGHT - inset)
    return Plot(chart, series, steps, values, heights, x_axis, y_axis, max(0.5, min(room * 0.8, 28.0)))


def draw(plot: Plot) -> str:
    """Draw the frame and its contents."""
    return _frame(plot) + (_layers(plot) if plot.chart.kind == "stack" else _error_bars(plot) + _lines(plot))


def _y_axis(chart: Chart, drawn: list[float]) -> Axis:
    limits = [chart.limit[1]] if chart.limit else []
    if chart.log:
        positive = [value for value in drawn + limits if value > 0] or [1.0]
        return svg.log_axis(min(positive), max(positive), _BOTTOM, _TOP)
    high = max(0.0, *drawn, chart.top or 0.0)
    near = [limit for limit in limits if limit <= 3 * high]  # a limit far above would flatten the values
    return svg.linear_axis(min(0.0, *drawn), max([high, *near]), _BOTTOM, _TOP)


def _frame(plot: Plot) -> str:
    chart, y_axis = plot.chart, plot.y
    parts = [svg.grid(y_axis, _LEFT, _RIGHT, lambda tick: on_axis(tick, chart.unit))]
    parts.append(svg.steps_below(plot.x, HEIGHT - 6, chart.axis))
    if chart.limit and y_axis.low <= chart.limit[1] <= y_axis.high:
        name, y = chart.limit[0], y_axis.px(chart.limit[1])
        parts.append(svg.element("line", class_="limit", x1=_LEFT, x2=_RIGHT, y1=y, y2=y))
        parts.append(svg.text(_RIGHT, y + 11, name, "end", "limit-name"))
    return "".join(parts)


def _lines(plot: Plot) -> str:
    parts = []
    for s, values, heights in zip(plot.series, plot.values, plot.heights, strict=True):
        pixels = {step: (plot.x.px(step), plot.y.px(height)) for step, height in heights.items()}
        line = svg.line([pixels.get(step) for step in plot.steps if step in values], data_series=s.key)
        dots = "".join(svg.point(pixel, 2.6) for pixel in pixels.values()) if len(pixels) <= _MOST_DOTS else ""
        parts.append(svg.element("g", line + dots, class_=svg.colour(s.colour)))
    return "".join(parts)


def _error_bars(plot: Plot) -> str:
    parts = []
    for s in plot.series:
        shown = [(plot.x.px(step), s.intervals[step]) for step in plot.steps if step in s.intervals]
        ends = [(x, plot.y.px(i.high), plot.y.px(i.low)) for x, i in shown]
        if ends:
            bars = svg.error_bars(ends, 3 if len(ends) <= _MOST_DOTS else 0, data_interval=s.key)
            parts.append(svg.element("g", bars, class_=svg.colour(s.colour)))
    return "".join(parts)


def _layers(plot: Plot) -> str:
    parts, base = [], dict.fromkeys(plot.steps, 0.0)
    for s, values, heights in zip(plot.series, plot.values, plot.heights, strict=True):
        boxes = [
            (plot.x.px(step), plot.y.px(heights[step]), plot.y.px(base[step]))
            for step in plot.steps
            if values.get(step) is not None
        ]
        bars = svg.bars(boxes, plot.bar_width, data_series=s.key)
        parts.append(svg.element("g", bars, class_=svg.colour(s.colour)))
        base = heights
    return "".join(parts)
