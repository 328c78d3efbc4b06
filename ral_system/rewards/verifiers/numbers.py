"""Numbers as people write them, for the verifiers that compare numbers."""

from __future__ import annotations

import math
import re

_TYPOGRAPHY = {**dict.fromkeys([*range(0x2012, 0x2016), 0x2212], "-"), **dict.fromkeys(map(ord, "$€£¥"), None)}
_MINUS = re.compile(r"\b(?:minus|negative)\s+|(?:^|(?<=[=:(\[,;])|(?<=\bis))\s*-\s+(?=[.\d])")
"""`minus 5`, `x = - 5`; not the difference `3 - 5`."""

_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_NUMBER = re.compile(
    r"(?<![.^])(?<!\^\{)((?<![\w)\]}])[-+]|(?<!\w))"  # not the 1 of `x1`, the 2 of `cm^2`, the -5 of `3-5`
    r"(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?(?:\s*\^\s*\{?([-+]?\d+)\}?)?"
    rf"(?:[\s-]*({'|'.join(_SCALES)})s?\b)?"
)
_PLAIN = re.compile(r"(?<![a-z_\d.])[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_FRACTION = re.compile(r"([-+]?)(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)")
_BOUND = re.compile(r"(?<![-=])[<>≠≤≥]|!=|\\(?:neq?|[lg](?:t|eq?))\b|\bnot\b|n['’]t\b")


def read_number(text: str) -> float | None:
    """The one finite number of a text: `1,024`, `-3.5e2`, `1 1/2`, `10^3`, `12 %` (0.12), `- $5`, `1.5 million apples`.

    None where there is none, or more than one: an answer that names two has not decided. None for a bound (`> 5`) too.
    """
    text = _signed(text).rstrip(".")
    if (fraction := _FRACTION.fullmatch(text)) is not None:
        return _quotient(*fraction.groups())
    found = list(_NUMBER.finditer(text))
    if len(found) != 1 or _BOUND.search(text) is not None:
        return None
    value = _value(*found[0].groups())
    return value / 100 if value is not None and text.endswith("%") else value


def read_numbers(text: str, count: int) -> list[float] | None:
    """Exactly `count` finite numbers, whatever stands between them; else None."""
    found = [float(digits) for digits in _PLAIN.findall(_signed(text))]
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def reference_number(reference: str) -> float:
    """The reference answer's number. Raises ValueError."""
    value = read_number(reference)
    if value is None:
        raise ValueError(f"the reference answer {reference!r} is not one number")
    return value


def _signed(text: str) -> str:
    """A text in small letters without currencies, each minus a hyphen that touches its number."""
    return _MINUS.sub(" -", text.lower().translate(_TYPOGRAPHY)).strip()


def _quotient(sign: str, whole: str | None, over: str, under: str) -> float | None:
    if not float(under):
        return None
    value = float(whole or 0) + float(over) / float(under)
    return _finite(-value if sign == "-" else value)


def _value(sign: str, digits: str, exponent: str | None, power: str | None, scale: str | None) -> float | None:
    digits = digits.rstrip(",")
    if "," in digits and (exponent or _THOUSANDS.fullmatch(digits) is None):
        return None
    try:
        value = float(digits.replace(",", "") + (exponent or "")) ** float(power or 1) * _SCALES.get(scale or "", 1)
    except (OverflowError, ZeroDivisionError):
        return None
    return _finite(-value if sign == "-" else value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
