"""A figure of several models over one axis, with intervals, as an SVG file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log2, log10

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 400, 64, 64, 150, 52
_LABEL = 32.0
"""Pixels that a number below the axis takes."""
_COLOURS = ("#2a6fdb", "#c2410c", "#15803d", "#7c3aed", "#b45309", "#0e7490")


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One model at one value, placed at what it saw on average. `low` and `high` are the ends of its interval."""

    x: float
    y: float
    low: float
    high: float


def sweep_chart(title: str, x_label: str, y_label: str, lines: Mapping[str, Sequence[SweepPoint]]) -> str:
    """A line per model, in the order given; x logarithmic. At least one point."""
    points = [p for line in lines.values() for p in line]
    left, right = log2(min(p.x for p in points)), log2(max(p.x for p in points))
    ticks = _ticks(min(p.low for p in points), max(p.high for p in points))
    bottom, top = ticks[0], ticks[-1]

    def x_px(x: float) -> float:
        share = (log2(x) - left) / (right - left) if right > left else 0.5
        return _LEFT + 14 + share * (_WIDTH - _LEFT - _RIGHT - 28)

    def y_px(y: float) -> float:
        share = (y - bottom) / (top - bottom)
        return _HEIGHT - _BOTTOM - 8 - share * (_HEIGHT - _TOP - _BOTTOM - 16)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="11" fill="#16181d">'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
        f'<text x="16" y="26" font-size="15">{escape(title)}</text>'
        f'<text x="16" y="44" fill="#5d636e">{escape(y_label)}; bars are 95 % intervals over questions</text>'
        f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" stroke="#8b919b"/>'
    ]
    last = -_LABEL
    for x in sorted({p.x for p in points}):
        if x_px(x) - last >= _LABEL:  # what is seen may be nearly the same at two values
            last = x_px(x)
            parts.append(f'<text x="{last:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{x:.4g}</text>')
    for y in ticks:
        parts.append(f'<text x="{_LEFT - 8}" y="{y_px(y) + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle" fill="#5d636e">{escape(x_label)}</text>')
    for i, (name, line) in enumerate(lines.items()):
        parts += _line(name, sorted(line, key=lambda p: p.x), i, len(lines), x_px, y_px)
    return "".join([*parts, "</svg>\n"])


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around both, three to nine of them; none below 0 where neither is."""
    if high == low:
        low, high = low - 0.5 if low < 0 else max(low - 0.5, 0.0), high + 0.5
    widest = (high - low) / 3 * (1 + 1e-9)  # 0.3 / 3 is less than 0.1
    power = 10.0 ** floor(log10(widest))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= widest)
    return [n * step for n in range(floor(low / step + 1e-9), ceil(high / step - 1e-9) + 1)]


def _line(name: str, line: Sequence[SweepPoint], index: int, count: int, x_px, y_px) -> list[str]:  # type: ignore[no-untyped-def]
    colour, aside = _COLOURS[index % len(_COLOURS)], 3.0 * (index - (count - 1) / 2)  # so that bars do not hide bars
    at = [(x_px(p.x) + aside, y_px(p.y)) for p in line]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    parts = [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for (x, y), p in zip(at, line, strict=True):
        told = f"{escape(name)} at {p.x:.4g}: {p.y:.4g} ({p.low:.4g} to {p.high:.4g})"
        parts.append(
            f'<g><title>{told}</title><path d="M{x:.1f} {y_px(p.low):.1f}V{y_px(p.high):.1f}" stroke="{colour}" '
            f'stroke-opacity="0.5"/><circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/></g>'
        )
    key = _TOP + 12 + 18 * index
    parts.append(
        f'<path d="M{_WIDTH - _RIGHT + 12} {key - 4}h18" stroke="{colour}" stroke-width="2"/>'
        f'<text x="{_WIDTH - _RIGHT + 36}" y="{key}">{escape(name)}</text>'
    )
    return parts
