"""Numbers as people write them, for the verifiers that compare numbers."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_PLAIN = re.compile(r"(?<![A-Za-z_\d.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")  # the 1 of `x1` is none
_FRACTION = re.compile(r"([-+]?\d+)\s*/\s*(\d+)")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")


def read_number(text: str) -> float | None:
    """The one finite number of a text: `1,024`, `-3.5e2`, `3/4`, `12 %` (0.12), `about 7 apples`.

    None where there is none, or more than one: an answer that names two has not decided.
    """
    cleaned = text.replace("\N{MINUS SIGN}", "-").strip().rstrip(".")
    if (fraction := _FRACTION.fullmatch(cleaned)) is not None:
        over, under = float(fraction[1]), float(fraction[2])
        return over / under if under and math.isfinite(over) and math.isfinite(under) else None
    found = _NUMBER.findall(cleaned)
    if len(found) != 1:
        return None
    digits = found[0].rstrip(",")
    if "," in digits:
        if _THOUSANDS.fullmatch(digits) is None:
            return None
        digits = digits.replace(",", "")
    value = float(digits)
    if cleaned.endswith("%"):
        value /= 100
    return value if math.isfinite(value) else None


def read_numbers(text: str, count: int) -> list[float] | None:
    """Exactly `count` finite numbers, whatever stands between them; else None."""
    found = [float(digits) for digits in _PLAIN.findall(text)]
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def reference_number(reference: str) -> float:
    """The reference answer's number. Raises ValueError."""
    value = read_number(reference)
    if value is None:
        raise ValueError(f"the reference answer {reference!r} is not one number")
    return value
