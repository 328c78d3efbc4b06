"""Two panels as one SVG file that needs nothing else: time and memory against tokens, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from math import ceil, floor, log10

from bench.plan import VARIANTS, Variant
from bench.targets import Records

_WIDTH, _HEIGHT = 880, 400
_PANEL_WIDTH, _PANEL_HEIGHT, _TOP = 350, 250, 66
_LABELS: dict[Variant, tuple[str, str]] = {
    "eager_full": ("eager, all rows", "#7c828d"),
    "dense": ("dense rows", "#e0642a"),
    "chunked": ("chunked", "#2a6fdb"),
    "triton": ("triton", "#159a70"),
    "sdpa": ("layer's sdpa", "#8a4fd3"),
}


def draw(records: Records, title: str) -> str:
    """The SVG's text."""
    drawn = [v for v in VARIANTS if any(records.seconds(v, t) or records.peak(v, t) for t in records.tokens())]
    legend, x = [], 60.0
    for variant in drawn:
        label, colour = _LABELS[variant]
        legend.append(f'<circle cx="{x}" cy="356" r="5" fill="{colour}"/><text x="{x + 10}" y="360">{label}</text>')
        x += 40 + 7.2 * len(label)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#16181d">'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
        f'<text x="60" y="24" font-size="15">{escape(title)}</text>'
        + _panel(60, "time: forward + backward / sdpa's", records, lambda v, t: records.ratio(v, "sdpa", t))
        + _panel(500, "peak memory beyond inputs, MiB", records, lambda v, t: (records.peak(v, t) or 0) / 2**20)
        + "".join(legend)
        + f'<text x="60" y="386" fill="#5d636e">{escape(_missing(records))}</text></svg>\n'
    )


def _panel(left: float, name: str, records: Records, of: Callable[[Variant, int], float | None]) -> str:
    """One chart. Values that are unknown, zero or negative are left out."""
    tokens = records.tokens()
    points = {v: [(t, y) for t in tokens if (y := of(v, t)) is not None and y > 0] for v in VARIANTS}
    values = [y for line in points.values() for _, y in line]
    parts = [f'<text x="{left}" y="52" fill="#5d636e">{escape(name)}</text>']
    if not values:
        return "".join([*parts, f'<text x="{left}" y="{_TOP + 40}">not measured</text>'])
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    high = max(high, low + 1)
    first, last = log10(tokens[0]), log10(tokens[-1])

    def x_px(count: float) -> float:
        share = (log10(count) - first) / (last - first) if last > first else 0.5
        return round(left + 12 + share * (_PANEL_WIDTH - 24), 1)

    def y_px(value: float) -> float:
        return round(_TOP + _PANEL_HEIGHT * (high - log10(value)) / (high - low), 1)

    for power in range(low, high + 1):
        y = y_px(10.0**power)
        parts.append(f'<path d="M{left} {y}h{_PANEL_WIDTH}" stroke="#e4e4e0"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end" fill="#5d636e">{10.0**power:g}</text>')
    for count in tokens:
        label = f"{count // 1024}k" if count % 1024 == 0 else f"{count:,}"
        at = f'x="{x_px(count)}" y="{_TOP + _PANEL_HEIGHT + 16}"'
        parts.append(f'<text {at} text-anchor="middle" fill="#5d636e">{label}</text>')
    for variant, line in points.items():
        colour = _LABELS[variant][1]
        pixels = [(x_px(t), y_px(y)) for t, y in line]
        if pixels:
            path = "L".join(f"{x} {y}" for x, y in pixels)
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in pixels]
    return "".join(parts)


def _missing(records: Records) -> str:
    """What the lines do not show."""
    absent = []
    for variant in VARIANTS:
        gaps = [t for t in records.tokens() if records.one(variant, t).get("failure")]
        where = "" if gaps == records.tokens() else f" at {', '.join(f'{t:,}' for t in gaps)}"
        absent += [f"{_LABELS[variant][0]}{where}"] if gaps else []
    return f"not measured: {'; '.join(absent)}" if absent else ""
