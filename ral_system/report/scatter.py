"""A scatter plot with a name at every point, as an SVG file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import log10

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 420, 64, 52, 24, 52


@dataclass(frozen=True, slots=True)
class Point:
    """One point and what it is called."""

    x: float
    y: float
    name: str


def scatter(points: Sequence[Point], title: str, x_label: str, y_label: str) -> str:
    """At least one point; axes from the smallest to the largest value, x logarithmic if that is more than 1 : 100."""
    xs, ys = [p.x for p in points], [p.y for p in points]
    log = min(xs) > 0 and max(xs) / min(xs) > 100
    x_px = _axis([log10(x) if log else x for x in xs], _LEFT, _WIDTH - _RIGHT)
    y_px = _axis(ys, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="11" fill="#16181d">'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
        f'<text x="16" y="26" font-size="15">{escape(title)}</text>'
        f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" stroke="#8b919b"/>'
    ]
    for x in sorted({min(xs), max(xs)}):
        at = x_px(log10(x) if log else x)
        parts.append(f'<text x="{at}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{x:.3g}</text>')
    for y in sorted({min(ys), max(ys)}):
        parts.append(f'<text x="{_LEFT - 8}" y="{y_px(y) + 4}" text-anchor="end">{y:.3g}</text>')
    middle, x_label = (_TOP + _HEIGHT - _BOTTOM) / 2, f"{x_label}, logarithmic" if log else x_label
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle" fill="#5d636e">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text x="18" y="{middle}" text-anchor="middle" fill="#5d636e" transform="rotate(-90 18 {middle})">'
        f"{escape(y_label)}</text>"
    )
    lowest = 0.0  # of the names so far, from the top: one below the other where points crowd
    for p in sorted(points, key=lambda p: -p.y):
        x, y = x_px(log10(p.x) if log else p.x), y_px(p.y)
        lowest = max(y + 4, lowest + 12)
        to_the_left = x > _WIDTH * 0.6
        parts.append(
            f"<g><title>{escape(p.name)}: {p.x:.4g}, {p.y:.4g}</title>"
            f'<path d="M{x} {y}L{x + (-9 if to_the_left else 9)} {lowest - 4}" stroke="#c9ccd1"/>'
            f'<circle cx="{x}" cy="{y}" r="5" fill="#2a6fdb" fill-opacity="0.75"/>'
            f'<text x="{x + (-11 if to_the_left else 11)}" y="{lowest}" fill="#5d636e" '
            f'text-anchor="{"end" if to_the_left else "start"}">{escape(p.name)}</text></g>'
        )
    return "".join([*parts, "</svg>\n"])


def _axis(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = min(values), max(values)
    inset = (end - start) * 0.06

    def px(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(start + inset + share * (end - start - 2 * inset), 1)

    return px
