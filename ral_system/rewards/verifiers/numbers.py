"""Numbers as people write them, for the verifiers that compare numbers."""

from __future__ import annotations

import math
import re

from ral_system.rewards.verifiers.markup import undressed

_DASHES = dict.fromkeys([*range(0x2012, 0x2016), 0x2212], "-")
_CURRENCY = re.compile(r"[a-z]{0,3}[$€£¥]\s*")
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>(?<!\w)[-+]|^[-+]\s+|(?<=[=:])\s*[-+]\s+|\b(?:minus|negative)\s+)?"
    r"(?:(?:(?P<whole>\d+)\s+)?(?P<over>\d+)\s*/\s*(?P<under>\d+)"
    r"|(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+)(?P<exponent>e[-+]?\d+)?(?:\^\{?(?P<power>[-+]?\d+)\}?)?)"
    rf"(?:[\s-]*(?P<scale>{'|'.join(_SCALES)})s?\b)?(?P<percent>\s*\\?%|\s*percent\b)?"
)
_PLAIN = re.compile(r"(?<![a-z_\d.])[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")
_POWER_OF_UNIT = re.compile(r"(?<=[a-z])(?:\^?\{?-?\d\}?|[²³])")
_FOREIGN = re.compile(
    r"\d|[½¼¾²³√π^*<>≠≤≥\\]|[-+]\W{0,3}$|\w\($|^[kmb]\b|n['’]t\b"
    r"|\b(?:not|no|cannot|least|most|more|less|than|over|under|above|below|dozen|half"
    rf"|(?:{'|'.join(_SCALES)})(?:s|ths?)?)\b"
)
"""What beside a number makes it another one, or none."""


def read_number(text: str) -> float | None:
    """The one finite number of a text: `1,024`, `-3.5e2`, `1 1/2`, `10^3`, `12 %` (0.12), `- $5`, `1.5 million apples`.

    Strict: None where there is none or a second, where it is a bound (`at least 5`), and beside mathematics (`2√3`).
    """
    text = _CURRENCY.sub("", text.lower().translate(_DASHES))
    text = undressed(text).replace("=>", " ").strip().rstrip(".")
    if (found := _NUMBER.search(text)) is None:
        return None
    before, after = text[: found.start()], _POWER_OF_UNIT.sub("", text[found.end() :])
    return None if _FOREIGN.search(before) or _FOREIGN.search(after) else _value(found)


def read_numbers(text: str, count: int) -> list[float] | None:
    """Exactly `count` finite numbers, whatever stands between them; else None."""
    found = [float(digits) for digits in _PLAIN.findall(text.lower().translate(_DASHES))]
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def reference_number(reference: str) -> float:
    """The reference answer's number. Raises ValueError."""
    value = read_number(reference)
    if value is None:
        raise ValueError(f"the reference answer {reference!r} is not one number")
    return value


def _value(found: re.Match[str]) -> float | None:
    try:
        if found["under"]:
            value = float(found["whole"] or 0) + float(found["over"]) / float(found["under"])
        else:
            value = float(found["digits"].replace(",", "") + (found["exponent"] or "")) ** float(found["power"] or 1)
    except (OverflowError, ZeroDivisionError):
        return None
    value *= _SCALES.get(found["scale"] or "", 1) / (100 if found["percent"] else 1)
    sign = -1 if (found["sign"] or "+").strip() != "+" else 1
    return sign * value if math.isfinite(value) else None
