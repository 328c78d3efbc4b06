"""Charts of the report as HTML figures. The values for the hover tooltip travel beside each drawing as JSON."""

from __future__ import annotations

import json
from html import escape

from ral_system.report.plot import HEIGHT, WIDTH, Plot, draw, place
from ral_system.report.series import Chart, Series, described
from ral_system.report.svg import colour


def figure(chart: Chart) -> str:
    """Return the chart as an HTML `<figure>`; empty if no series has a value to draw."""
    series = [s for s in chart.series if s.known]
    if not series:
        return ""
    plot = place(chart, series)
    label = f"{chart.title}: " + ", ".join(f"{s.label} {chart.summary(s)}" for s in series)
    return (
        f'<figure data-chart="{chart.id}">{_caption(chart, series)}'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{escape(label)}">'
        f'{draw(plot)}<g class="cursor"></g></svg>'
        f'<script type="application/json">{_hover(plot)}</script></figure>'
    )


def _caption(chart: Chart, series: list[Series]) -> str:
    title, note = escape(chart.title), escape(chart.note)
    if len(series) == 1:
        value = f'<b class="value">{chart.summary(series[0])}</b>'
        return f"<figcaption><h3>{title}{value}</h3><p>{note}</p></figcaption>"
    items = (
        f'<li><i style="background:{_variable(s)}"></i>{escape(s.label)} <b>{chart.summary(s)}</b></li>' for s in series
    )
    return f"<figcaption><h3>{title}</h3><p>{note}</p><ul class=legend>{''.join(items)}</ul></figcaption>"


def _hover(plot: Plot) -> str:
    """Return pixels and texts by step, for report.js."""
    series = [
        {
            "label": s.label,
            "colour": _variable(s),
            "y": [plot.y.px(heights[step]) if step in heights else None for step in plot.steps],
            "text": [described(s, step, values.get(step), plot.chart.unit) for step in plot.steps],
        }
        for s, values, heights in zip(plot.series, plot.values, plot.heights, strict=True)
    ]
    x = [plot.x.px(step) for step in plot.steps]
    found = {"x": x, "step": plot.steps, "axis": plot.chart.axis, "series": series}
    return json.dumps(found, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _variable(series: Series) -> str:
    return f"var(--{colour(series.colour)})"
