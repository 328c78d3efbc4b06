"""Numbers as people write them, for the verifiers that compare numbers."""

from __future__ import annotations

import math
import re

_SIMPLE = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_PLAIN = re.compile(r"(?<![A-Za-z_\d.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")  # the 1 of `x1` is none
_FRACTION = re.compile(r"([-+]?)(?:(\d+)\s+)?(\d+)\s*/\s*([-+]?)(\d+)")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?!\d)")

_DASHES = dict.fromkeys([*range(0x2012, 0x2016), 0x2212], "-")
_MINUS = re.compile(r"(?:minus|negative)\s+(?=[$€£¥.\d])")
_CURRENCY = re.compile(r"(?<=[-+])(\s*)\\?[$€£¥]\s*(?=[.\d])")
_APART = re.compile(r"((?:^|[=:(\[,;]|\b(?:is|equals))\s*[-+])\s+(?=[.\d])")
"""A sign away from its digits, where no operand stands before it: `x = - 5`, not `3 - 5`."""

_INDEX = re.compile(r"\d(?<=[a-z_].)(?<!\de.)[\w.]*")
"""The 1 of `x1`, the 2 of `m2`; not the 3 of `2e3`."""
_UNIT_POWER = re.compile(r"\^(?<=[a-z)}].)\s*\{?[-+]?\d+\}?(?!\s*[}=])")
"""The square of `cm^2`; in `x^2 = 5` it is none of a unit."""

_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_NUMBER = re.compile(
    r"((?<![\w)\]}])[-+])?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?(?:\s*\^\s*\{?([-+]?\d+)\}?)?"
    rf"(?:[\s-]*({'|'.join(_SCALES)})s?\b)?"
)
_REFUSED = re.compile(
    r"[<>≠≤≥](?<![-=].)|!=|\\(?:neq?|[lg](?:t|eq?))\b|n(?:ot|['’]t)\s+(?:equal\s+to\s+)?[$€£¥]?\0"
    rf"|\0[\s-]*(?:{'|'.join(_SCALES)}|dozen|lakh|crore)(?:s|ths?)?\b"
)
"""Around a number, at whose place is a \\0: what makes it another one."""


def read_number(text: str) -> float | None:
    """The one finite number of a text: `1,024`, `-3.5e2`, `1 1/2`, `10^3`, `12 %` (0.12), `- $5`, `1.5 million apples`.

    None where there is none, or more than one: an answer that names two has not decided. None for a bound (`> 5`) too.
    """
    cleaned = text.strip()
    if _SIMPLE.fullmatch(cleaned) is not None:
        return _finite(float(cleaned))
    cleaned = _signed(cleaned.rstrip(".").lower())
    cleaned = _SPACED_THOUSANDS.sub(lambda found: "".join(found[0].split()), cleaned)
    if (fraction := _FRACTION.fullmatch(cleaned)) is not None:
        return _quotient(*fraction.groups())
    cleaned = _UNIT_POWER.sub("", _INDEX.sub("", cleaned))
    found = list(_NUMBER.finditer(cleaned))
    if len(found) != 1 or _REFUSED.search(_NUMBER.sub("\0", cleaned)) is not None:
        return None
    value = _value(*found[0].groups())
    return value / 100 if value is not None and cleaned.endswith("%") else value


def read_numbers(text: str, count: int) -> list[float] | None:
    """Exactly `count` finite numbers, whatever stands between them; else None."""
    found = [float(digits) for digits in _PLAIN.findall(_signed(text.lower()))]
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def reference_number(reference: str) -> float:
    """The reference answer's number. Raises ValueError."""
    value = read_number(reference)
    if value is None:
        raise ValueError(f"the reference answer {reference!r} is not one number")
    return value


def _signed(text: str) -> str:
    """A text in small letters, its signs as hyphens that touch their digits, as in -5 for `–5`, `minus 5`, `-$5`."""
    text = _MINUS.sub("-", text.translate(_DASHES))
    return _APART.sub(r"\1", _CURRENCY.sub(r"\1", text)) if "-" in text or "+" in text else text


def _quotient(sign: str, whole: str | None, over: str, sign_below: str, under: str) -> float | None:
    if not float(under):
        return None
    value = float(whole or 0) + float(over) / float(under)
    return _finite(value if (sign == "-") == (sign_below == "-") else -value)


def _value(sign: str | None, digits: str, exponent: str | None, power: str | None, scale: str | None) -> float | None:
    digits = digits.rstrip(",")
    if "," in digits and (exponent or _THOUSANDS.fullmatch(digits) is None):
        return None
    value = float(digits.replace(",", "") + (exponent or ""))
    try:
        value = value ** float(power or 1) * _SCALES.get(scale or "", 1)
    except (OverflowError, ZeroDivisionError):
        return None
    return _finite(-value if sign == "-" else value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
