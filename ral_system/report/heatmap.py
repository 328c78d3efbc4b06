"""A map of one figure by layer and head, as a self-contained SVG file."""

from __future__ import annotations

from collections.abc import Sequence

from ral_system.report import svg

_CELL, _LEFT, _TOP = 34, 62, 74
_LEAST, _MOST = (0xEE, 0xF3, 0xFB), (0x14, 0x3C, 0x86)
"""Colours of the smallest and the largest value, in light and in dark."""


def heatmap(values: Sequence[Sequence[float]], title: str, note: str, layers: Sequence[int]) -> str:
    """Draw one row per layer, the last on top, and one column per head. Values that span more than 1 : 100 have
    logarithmic colours. `layers` are the numbers of the rows."""
    flat = [value for row in values for value in row]
    scale = svg.Axis(min(flat), max(flat), 0.0, 1.0, log=svg.wide_span(flat))
    parts, bottom = [], _TOP + len(values) * _CELL
    for i, (layer, row) in enumerate(zip(layers, values, strict=True)):
        y = bottom - (i + 1) * _CELL
        parts.append(svg.text(_LEFT - 8, y + 21, f"layer {layer}", "end"))
        parts += [_cell(layer, head, value, scale.share(value), y) for head, value in enumerate(row)]
    for head in range(len(values[0])):
        parts.append(svg.text(_LEFT + head * _CELL + _CELL / 2 - 1, bottom + 14, str(head), "middle"))
    parts.append(svg.text(_LEFT, bottom + 32, "head"))
    note = f"{note} Logarithmic colours." if scale.log else note
    return svg.document(_LEFT + len(values[0]) * _CELL + 20, bottom + 46, title, parts, note)


def _cell(layer: int, head: int, value: float, share: float, y: float) -> str:
    colour = "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(_LEAST, _MOST, strict=True))
    x, ink = _LEFT + head * _CELL, "#fff" if share > 0.5 else "#16181d"
    return svg.with_tooltip(
        f"layer {layer}, head {head}: {value:.4g}",
        svg.element("rect", x=x, y=y, width=_CELL - 2, height=_CELL - 2, rx=4, fill=f"#{colour}"),
        svg.text(x + _CELL / 2 - 1, y + 20, f"{value:.2g}", "middle", None, fill=ink),
    )
