"""Elements of charts as SVG text: palette, page head, axes with round ticks, grid, lines, points, bars.

Coordinates are pixels from the upper left corner. Colours are CSS classes: `s0` to `s7` for series, `ink` for text.
Only the standard library is imported, since a benchmark draws where little else is installed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

Pixel = tuple[float, float]

PALETTE = {  # name: light, dark
    "bg": ("#f7f7f5", "#111316"),
    "card": ("#fff", "#191c20"),
    "ink": ("#16181d", "#eceef1"),
    "soft": ("#5d636e", "#a5abb5"),
    "faint": ("#8b919b", "#7b828d"),
    "line": ("#e4e4e0", "#2a2e34"),
    "grid": ("#ecece8", "#25292e"),
    "good": ("#0f7a4d", "#5fd39b"),
    "good-bg": ("#e2f4ea", "#153326"),
    "bad": ("#b3261e", "#ff8f83"),
    "bad-bg": ("#fbe6e3", "#3b1c1a"),
    "accent": ("#2a6fdb", "#6ea5ff"),
    "s0": ("#2a6fdb", "#5f9bf5"),
    "s1": ("#e0642a", "#f0844f"),
    "s2": ("#159a70", "#3fbf93"),
    "s3": ("#b98a00", "#d9ac2b"),
    "s4": ("#8a4fd3", "#ae85ee"),
    "s5": ("#d14488", "#ec76ac"),
    "s6": ("#4b8f1f", "#86c254"),
    "s7": ("#7c828d", "#8d939e"),
}
_SERIES_COLOURS = 8
_DARK = "@media (prefers-color-scheme:dark)"
STYLE = """
.paper{fill:var(--card)}.ink{color:var(--ink)}.title{fill:var(--ink);font-size:15px}.label{fill:var(--soft)}
.grid{stroke:var(--grid)}.tick{fill:var(--soft);font-size:10.5px;font-variant-numeric:tabular-nums}
.limit{stroke:var(--bad);stroke-dasharray:4 3;opacity:.75}.limit-name{fill:var(--bad);font-size:10.5px}
.band{fill:var(--grid)}.zero{stroke:var(--faint)}
.line{fill:none;stroke:currentColor;stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round}
.thin{stroke-width:1;opacity:.6}.interval{fill:none;stroke:currentColor;stroke-width:1.2;opacity:.7}
.bar{fill:currentColor}.point{fill:currentColor;stroke:var(--card);stroke-width:1.2}
""" + "".join(f".s{i}{{color:var(--s{i})}}" for i in range(_SERIES_COLOURS))
"""Style of the classes, in the CSS variables of the palette."""


def variables() -> str:
    """Return the palette as CSS variables of an HTML page, in light and in dark."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1))
    return f":root{{{light}}}{_DARK}{{:root{{{dark}}}}}"


def colour(index: int) -> str:
    """Return the class of the series with this index, which is also the name of its CSS variable."""
    return f"s{index % _SERIES_COLOURS}"


def document(width: float, height: float, title: str, parts: Iterable[str], note: str = "") -> str:
    """Return a self-contained SVG file, at least as wide as its title and note, which take the upper 50 pixels.

    Its colours stand in it as such, since viewers other than browsers do not know CSS variables.
    """
    width = math.ceil(max(width, 32 + text_width(title, 15), 32 + text_width(note)))
    head = text(16, 26, title, class_="title") + (text(16, 45, note) if note else "")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="11">'
        f"<style>{_style(0)}{_DARK}{{{_style(1)}}}</style>"
        f"{element('rect', class_='paper', width=width, height=height)}{head}{''.join(parts)}</svg>\n"
    )


def element(name: str, content: str = "", /, **attributes: object) -> str:
    """Return an element around `content`, which is SVG. `class_` is written `class`, `text_anchor` `text-anchor`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_px(value) if isinstance(value, float) else escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def text(
    x: float, y: float, words: str, anchor: str = "start", class_: str | None = "label", **attributes: object
) -> str:
    """Draw a line of text, escaped."""
    return element("text", escape(words), class_=class_, x=x, y=y, **attributes, text_anchor=anchor)


def text_width(words: str, font_size: float = 11) -> float:
    """Estimate the width of a line of text in pixels, on the high side because fonts differ."""
    return 0.6 * font_size * len(words)


def with_tooltip(tooltip: str, *parts: str, class_: str | None = None) -> str:
    """Return a group with a tooltip."""
    return element("g", f"<title>{escape(tooltip)}</title>{''.join(parts)}", class_=class_)


def line(pixels: Iterable[Pixel | None], class_: str = "line", **attributes: object) -> str:
    """Draw a line through pixels, with a gap where one is None."""
    drawn, command = [], "M"
    for pixel in pixels:
        if pixel is not None:
            drawn.append(f"{command}{_px(pixel[0])} {_px(pixel[1])}")
        command = "M" if pixel is None else "L"
    return element("path", class_=class_, **attributes, d="".join(drawn))


def point(pixel: Pixel, radius: float) -> str:
    """Draw a dot with a rim in the colour of the paper."""
    return element("circle", class_="point", cx=pixel[0], cy=pixel[1], r=radius)


def bars(boxes: Iterable[tuple[float, float, float]], width: float, **attributes: object) -> str:
    """Draw bars of one width, each given by its centre, upper and lower edge."""
    drawn = (f"M{_px(x - width / 2)} {_px(low)}V{_px(high)}h{_px(width)}V{_px(low)}z" for x, high, low in boxes)
    return element("path", class_="bar", **attributes, d="".join(drawn))


def error_bars(ends: Iterable[tuple[float, float, float]], cap: float, **attributes: object) -> str:
    """Draw intervals, each given by its x, upper and lower end. Ends have a dash of `cap` pixels to both sides."""
    drawn = []
    for x, high, low in ends:
        drawn.append(f"M{_px(x)} {_px(high)}V{_px(low)}")
        drawn += [f"M{_px(x - cap)} {_px(y)}h{_px(2 * cap)}" for y in (high, low) if cap]
    return element("path", class_="interval", **attributes, d="".join(drawn))


def legend(x: float, y: float, label: str, class_: str) -> str:
    """Draw a piece of a series' line and its name."""
    return element("g", line([(x, y - 4), (x + 18, y - 4)]) + text(x + 24, y, label), class_=class_)


@dataclass(frozen=True, slots=True)
class Axis:
    """Axis that places `low` at pixel `start` and `high` at pixel `end`.

    Example: `Axis(1, 100, 50, 250, ticks=[1, 10, 100], log=True)` draws 10 at 150.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float] = ()
    log: bool = False

    def share(self, value: float) -> float:
        """Return the position between the ends, 0 to 1. Values beyond an end are drawn there; on an axis of one value
        all are in the middle."""
        low, high, at = (math.log10(max(v, self.low)) if self.log else v for v in (self.low, self.high, value))
        return min(max((at - low) / (high - low), 0.0), 1.0) if high > low else 0.5

    def px(self, value: float) -> float:
        """Return the position in pixels."""
        return round(self.start + self.share(value) * (self.end - self.start), 2)


def linear_axis(low: float, high: float, start: float, end: float, intervals: int = 4) -> Axis:
    """Make an axis that begins and ends near round numbers, with about `intervals` intervals between ticks."""
    if high <= low:
        low, high = (low - abs(low) / 2, low + abs(low) / 2) if low else (0.0, 1.0)
    ticks = _round_ticks(low, high, intervals)
    return Axis(min(low, ticks[0]), max(high, ticks[-1]), start, end, ticks)


def log_axis(low: float, high: float, start: float, end: float, most_ticks: int = 6) -> Axis:
    """Make an axis from the power of ten below `low` to the one above `high`; both are positive."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    every = math.ceil((last - first) / (most_ticks - 1))
    ticks = [10.0**power for power in range(first, last + 1, every)]
    return Axis(10.0**first, 10.0**last, start, end, ticks, log=True)


def axis_around(values: Sequence[float], start: float, end: float) -> Axis:
    """Make an axis around values, logarithmic if `wide_span`."""
    return (log_axis if wide_span(values) else linear_axis)(min(values), max(values), start, end)


def wide_span(values: Sequence[float]) -> bool:
    """Return whether values are positive and span more than 1 : 100, which needs a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) > 100


def grid(y_axis: Axis, left: float, right: float, number: Callable[[float], str] | None) -> str:
    """Draw a line across the panel for every tick, with the number on the left that `number` returns, if any."""
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.px(tick)
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        parts += [text(left - 6, y + 3.5, number(tick), "end", "tick")] if number else []
    return "".join(parts)


def numbers_below(x_axis: Axis, y: float, values: Iterable[float], number: Callable[[float], str]) -> str:
    """Draw numbers below an axis, from left to right; those that would overlap the previous one are left out."""
    parts, free_from = [], -math.inf
    for value in values:
        words, x = number(value), x_axis.px(value)
        half = text_width(words) / 2 + 4
        if x - half >= free_from:
            parts.append(text(x, y, words, "middle", "tick"))
            free_from = x + half
    return "".join(parts)


def steps_below(x_axis: Axis, y: float, name: str) -> str:
    """Draw the first and the last step below an axis, and its name between them."""
    first, last, middle = x_axis.low, x_axis.high, (x_axis.start + x_axis.end) / 2
    if first == last:
        return text(middle, y, f"{name} {first:,.0f}", "middle", "tick")
    labels = (
        (x_axis.start, f"{first:,.0f}", "start"),
        (middle, name, "middle"),
        (x_axis.end, f"{last:,.0f}", "end"),
    )
    return "".join(text(x, y, words, anchor, "tick") for x, words, anchor in labels)


def short(value: float) -> str:
    """Format a number in three digits or fewer, or with thousands separated: `0.025`, `1,500`, `2.4e-7`."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return scientific(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def scientific(value: float) -> str:
    """Format a number as two digits and a power of ten: `2.4e-7`, `1e5`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _round_ticks(low: float, high: float, intervals: int) -> list[float]:
    """Return multiples of 1, 2, 2.5 or 5 times a power of ten around both ends. An end may exceed the last
    tick by a tenth of an interval."""
    least = max((high - low) / intervals, 1e-300)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * 0.999)
    return [n * step for n in range(math.floor(low / step + 0.1), math.ceil(high / step - 0.1) + 1)]


def _style(shade: int) -> str:
    """Return STYLE with the colours of light (0) or dark (1)."""
    return re.sub(r"var\(--([\w-]+)\)", lambda name: PALETTE[name[1]][shade], STYLE)


def _px(value: float) -> str:
    """Format a coordinate to a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
