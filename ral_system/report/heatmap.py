"""A map of one figure by layer and head, as an SVG file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import log10

_CELL, _LEFT, _TOP = 34, 62, 74
_EMPTY, _FULL = (0xEE, 0xF3, 0xFB), (0x14, 0x3C, 0x86)


def heatmap(values: Sequence[Sequence[float]], title: str, note: str) -> str:
    """One row per layer, the last on top, one column per head. Values that span more than 1 : 100 have logarithmic
    colours."""
    flat = [v for row in values for v in row]
    log = min(flat) > 0 and max(flat) / min(flat) > 100
    place = [log10(v) if log else v for v in flat]
    low, high = min(place), max(place)
    heads, layers = len(values[0]), len(values)
    width, height = max(420, _LEFT + heads * _CELL + 20), _TOP + layers * _CELL + 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11" fill="#16181d">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        f'<text x="16" y="26" font-size="15">{escape(title)}</text>'
        f'<text x="16" y="46" fill="#5d636e">{escape(note)}{" Logarithmic colours." if log else ""}</text>'
    ]
    for layer, row in enumerate(values):
        y = _TOP + (layers - 1 - layer) * _CELL
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 21}" text-anchor="end" fill="#5d636e">layer {layer}</text>')
        for head, value in enumerate(row):
            share = ((log10(value) if log else value) - low) / (high - low) if high > low else 0.5
            colour = "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(_EMPTY, _FULL, strict=True))
            x, ink = _LEFT + head * _CELL, "#fff" if share > 0.5 else "#16181d"
            parts.append(
                f"<g><title>layer {layer}, head {head}: {value:.4g}</title>"
                f'<rect x="{x}" y="{y}" width="{_CELL - 2}" height="{_CELL - 2}" rx="4" fill="#{colour}"/>'
                f'<text x="{x + _CELL / 2 - 1}" y="{y + 20}" text-anchor="middle" fill="{ink}">{value:.2g}</text></g>'
            )
    below = _TOP + layers * _CELL + 14
    for head in range(heads):
        parts.append(f'<text x="{_LEFT + head * _CELL + _CELL / 2 - 1}" y="{below}" text-anchor="middle">{head}</text>')
    parts.append(f'<text x="{_LEFT}" y="{below + 18}" fill="#5d636e">head</text></svg>\n')
    return "".join(parts)
