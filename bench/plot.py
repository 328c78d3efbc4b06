"""Two panels as one SVG file that needs nothing else: time and memory against tokens, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Callable

from bench.plan import VARIANTS, Variant
from bench.targets import Records
from ral_system.report import svg

_PANEL_WIDTH, _TOP, _BOTTOM, _HEIGHT = 350, 66, 316, 400
_SERIES: dict[Variant, tuple[str, str]] = {
    "eager_full": ("eager, all rows", svg.colour(7)),
    "dense": ("dense rows", svg.colour(1)),
    "chunked": ("chunked", svg.colour(0)),
    "triton": ("triton", svg.colour(2)),
    "sdpa": ("layer's sdpa", svg.colour(4)),
}


def draw(records: Records, title: str) -> str:
    """Return the SVG's text."""
    drawn = [v for v in VARIANTS if any(records.seconds(v, t) or records.peak(v, t) for t in records.tokens())]
    legend = [svg.legend(60 + 140 * i, _BOTTOM + 44, *_SERIES[variant]) for i, variant in enumerate(drawn)]
    parts = [
        _panel(60, "time: forward + backward / sdpa's", records, lambda v, t: records.ratio(v, "sdpa", t)),
        _panel(500, "peak memory beyond inputs, MiB", records, lambda v, t: (records.peak(v, t) or 0) / 2**20),
        *legend,
        svg.text(60, _HEIGHT - 14, _missing(records)),
    ]
    return svg.document(880, _HEIGHT, title, parts)


def _panel(left: float, name: str, records: Records, of: Callable[[Variant, int], float | None]) -> str:
    """One chart. Values that are unknown, zero or negative are left out."""
    tokens = records.tokens()
    points = {v: [(t, y) for t in tokens if (y := of(v, t)) is not None and y > 0] for v in VARIANTS}
    values = [y for line in points.values() for _, y in line]
    label = svg.text(left, _TOP - 14, name)
    if not values:
        return label + svg.text(left, _TOP + 40, "not measured")
    x_axis = svg.Axis(tokens[0], tokens[-1], left + 12, left + _PANEL_WIDTH - 12, log=True)
    y_axis = svg.log_axis(min(values), max(values), _BOTTOM, _TOP)
    parts = [label, svg.grid(y_axis, left, left + _PANEL_WIDTH, svg.short)]
    parts.append(svg.numbers_below(x_axis, _BOTTOM + 16, tokens, _count))
    for variant, line in points.items():
        pixels = [(x_axis.px(t), y_axis.px(y)) for t, y in line]
        dots = "".join(svg.point(pixel, 3.5) for pixel in pixels)
        parts.append(svg.element("g", svg.line(pixels) + dots, class_=_SERIES[variant][1]) if pixels else "")
    return "".join(parts)


def _count(tokens: float) -> str:
    return f"{tokens // 1024:.0f}k" if tokens % 1024 == 0 else f"{tokens:,.0f}"


def _missing(records: Records) -> str:
    """Return a note on what the lines do not show."""
    absent = []
    for variant in VARIANTS:
        gaps = [t for t in records.tokens() if records.one(variant, t).get("failure")]
        where = "" if gaps == records.tokens() else f" at {', '.join(f'{t:,}' for t in gaps)}"
        absent += [f"{_SERIES[variant][0]}{where}"] if gaps else []
    return f"not measured: {'; '.join(absent)}" if absent else ""
