"""How much faster scoring and updates are with shared prompts, against the prompt's length, as one SVG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ral_system.report import svg

_WIDTH, _TOP, _BOTTOM, _HEIGHT = 350, 66, 316, 400


def draw(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Return the SVG's text: a panel for scoring and one for updates, a line for each group size, and the ideal."""
    groups = sorted({row["group"] for row in rows if sum(r["group"] == row["group"] for r in rows) > 1})
    legend = [
        svg.legend(60 + 190 * i, _BOTTOM + 44, f"{group} responses; dashed: tokens", svg.colour(i))
        for i, group in enumerate(groups)
    ]
    panels = [
        _panel(left, f"{name}: times as fast as without", rows, groups, key)
        for left, name, key in ((60, "scoring", "score"), (500, "update", "update"))
    ]
    return svg.document(880, _HEIGHT, title, [*panels, *legend])


def _panel(left: float, name: str, rows: Sequence[Mapping[str, Any]], groups: Sequence[int], key: str) -> str:
    prompts = sorted({row["prompt"] for row in rows})
    values = [row["tokens"] for row in rows] + [row[key][1] / row[key][0] for row in rows]
    x_axis = svg.Axis(prompts[0], prompts[-1], left + 12, left + _WIDTH - 12, log=True)
    y_axis = svg.log_axis(min(1.0, *values), max(values), _BOTTOM, _TOP)
    parts = [svg.text(left, _TOP - 14, name), svg.grid(y_axis, left, left + _WIDTH, svg.short)]
    parts.append(svg.numbers_below(x_axis, _BOTTOM + 16, prompts, lambda tokens: f"{tokens:,.0f}"))
    for i, group in enumerate(groups):
        mine = sorted((row for row in rows if row["group"] == group), key=lambda row: row["prompt"])
        measured = [(x_axis.px(row["prompt"]), y_axis.px(row[key][1] / row[key][0])) for row in mine]
        ideal = [(x_axis.px(row["prompt"]), y_axis.px(row["tokens"])) for row in mine]
        dots = "".join(svg.point(pixel, 3.5) for pixel in measured)
        dashed = svg.line(ideal, stroke_dasharray="4 4")
        parts.append(svg.element("g", svg.line(measured) + dots + dashed, class_=svg.colour(i)))
    return "".join(parts)
