"""Numbers as people write them, for the verifiers that compare numbers."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass

from ral_system.rewards.verifiers.markup import boxed, undressed
from ral_system.rewards.verifiers.spelled import SCALES, in_digits
from ral_system.rewards.verifiers.units import NONE, PERCENT, Unit, agree, counted_at, unit_at, without_money

_SIGNS = str.maketrans(
    dict.fromkeys("‒–—―−", "-")
    | {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3", "⁄": "/", "∕": "/", "：": ":", "％": "%"}
)
_RAISED, _TO_FLAT = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+"), str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_DEGREES = re.compile(r"\^ ?(?:\\circ\b|\{ ?\\circ ?\})|\\degree\b")
_SPACING = re.compile(r"(?<!\\)\\[,;:! ]|\\q?quad\b|~")
_FRACTION = re.compile(r"\\[dtc]?frac ?(?:\{ ?(-?\d+) ?\}|(\d)) ?(?:\{ ?(\d+) ?\}|(\d))")
_MIXED = re.compile(r"(?<=\d) ?(?=\\[dtc]?frac)")
TIMES_TEN = re.compile(r"(?<=[\d.]) ?(?:[×·⋅*x]|\\times|\\cdot) ?10 ?\^ ?[{(]? ?([-+]?\d+) ?[)}]?")
_EXPONENT = re.compile(r"\^ ?[{(]? ?([-+]?\d+) ?[)}]?")
_COMMA = re.compile(r"(?<=\d)\{,\}(?=\d{3})")
_THOUSANDS = re.compile(r"(?<![\w.,] )(?<![\w.,])\d{1,3}(?: \d{3})+(?! ?[\d/])")
_PRODUCT = re.compile(r"(?<=\d) ?\*+ ?(?=[\d(])")
_TWICE = re.compile(r"\b(\d+) ?\(\1\)")
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>(?<!\w)[-+]|^[-+]\s+|(?<=[=:])\s?[-+]\s|\b(?:minus|negative)\s)?"
    r"(?:(?:(?P<whole>\d+) )?(?P<over>\d+) ?/ ?(?P<under>\d+)"
    r"|(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+)(?P<exponent>e[-+]?\d+)?(?:\^(?P<power>[-+]?\d+))?)"
    rf"(?:[ -]?(?P<scale>{'|'.join(SCALES)})s?\b)?",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"(?<![a-z_\d.])[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")
_POWER_OF_UNIT = re.compile(r"(?<=[A-Za-z])\^?-?\d")
_VARIABLE = re.compile(r"!|(?!(?:[ap]m|st|nd|rd|th)\b)[A-Za-zͰ-Ͽ]{1,2}(?![A-Za-zͰ-Ͽ])")
"""Directly behind a number without a unit: a factorial or variables; not `5pm`, `5th` or words such as `60fps`."""
_SHORT_SCALE = re.compile(r"(?:[kKMBb]|bn)\b")
DENIALS = (
    "not|no|nor|cannot|never|neither|wrong|incorrect|doubt|except|excluding|anything but|all but|least|most|more|less"
    "|fewer|than|over|under|above|below|up to"
)
"""Words that take back what they stand beside, or make it a bound; a part of a regular expression."""
_OPERATIONS = "squared|cubed|(?:square|cube|root) of|twice|doubled?|tripled?|plus|divided|dozen|half"
_FOREIGN = re.compile(
    r"\d|[√π^*<>≠≤≥±\\]|[-+]\W{0,3}$|\w\($|n['’]t\b"
    rf"|\b(?:{DENIALS}|{_OPERATIONS}|(?:{'|'.join(SCALES)})(?:s|ths?)?)\b",
    re.IGNORECASE,
)
"""What beside a number makes it another one, or none."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its unit. `12%` has the value 12 and the unit percent."""

    value: float
    unit: Unit


@functools.lru_cache(1024)  # a group shares its reference, and its answers repeat each other
def read_quantity(text: str) -> Quantity | None:
    r"""The one finite number of a text and its unit: `1,024`, `1 024`, `-3.5e2`, `3 \times 10^5`, `1 1/2`, `forty-two`,
    `12 %`, `- $5`, `1.5 million apples`. Of a text with a box, the number in the box.

    Strict: None where there is none or a second, where it is a bound (`at least 5`), and beside mathematics (`2√3`,
    `5x`).
    """
    inside = boxed(text) if "\\" in text else None
    text, money = without_money(_without_latex(one_line(text if inside is None else inside)))
    if "*" in text or "$" in text:
        text = _PRODUCT.sub("×", text.replace("$ $", "$,$").replace("$$", "$,$"))
    text = " ".join(undressed(text).replace("=>", " ").split()).rstrip(". ")
    text = _TWICE.sub(r"\1", in_digits(text))
    if (found := _NUMBER.search(text)) is None:
        return None
    before, after = text[: found.start()], text[found.end() :]
    unit, end = unit_at(after, place := int(after.startswith(" ")))
    if end == place:
        if _VARIABLE.match(after):
            return None
        unit, end = counted_at(after), 0
    rest = _POWER_OF_UNIT.sub("", after[end:])
    if _FOREIGN.search(before) or _FOREIGN.search(rest) or _SHORT_SCALE.match(after):
        return None
    value = _value(found)
    return None if value is None else Quantity(value, unit if money is NONE else money)


def read_number(text: str) -> float | None:
    """The number of `read_quantity` without its unit; of `12 %`, 0.12."""
    found = read_quantity(text)
    return None if found is None else found.value / (100 if found.unit == PERCENT else 1)


def read_numbers(text: str, count: int) -> list[float] | None:
    """Exactly `count` finite numbers, whatever stands between them; else None."""
    found = [float(digits) for digits in _PLAIN.findall(text.lower().translate(_SIGNS))]
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def compared(given: str, reference: str) -> list[tuple[float, float]]:
    """Pair given and expected values to compare: none if the answer is not a number, or its unit not the reference's.

    A percent sign on one side only gives two pairs, since the other may be meant in percent or as a share; but a
    reference of at most 1 without a sign is a share. Raises ValueError where the reference is not one number.
    """
    expected, found = read_quantity(reference), read_quantity(given)
    if expected is None:
        raise ValueError(f"the reference answer {reference!r} is not one number")
    if found is None or not agree(found.unit, expected.unit):
        return []
    pairs = [(found.value, expected.value)]
    if found.unit == PERCENT != expected.unit:
        share = (found.value / 100, expected.value)
        return [share] if abs(expected.value) <= 1 else [*pairs, share]
    if expected.unit == PERCENT != found.unit:
        pairs.append((found.value, expected.value / 100))
    return pairs


def one_line(text: str) -> str:
    r"""A text in one line, with ASCII signs and single blanks: `5²` is `5^2`, `60^\circ` `60°`, `1\,000` `1000`."""
    text = " ".join((text if text.isascii() else text.translate(_SIGNS)).split())
    if not text.isascii():
        text = _RAISED.sub(lambda raised: "^" + raised[0].translate(_TO_FLAT), text)
    if "\\" in text or "~" in text or "{,}" in text:
        text = _COMMA.sub("", _DEGREES.sub("°", text.replace("\\!", "")))
        text = " ".join(_SPACING.sub(" ", text).split())
    return _THOUSANDS.sub(lambda groups: groups[0].replace(" ", ""), text)


def _without_latex(text: str) -> str:
    if "\\" in text:
        text = _FRACTION.sub(r"\1\2/\3\4", _MIXED.sub(" ", text))
    return _EXPONENT.sub(r"^\1", TIMES_TEN.sub(r"e\1", text)) if "^" in text else text


def _value(found: re.Match[str]) -> float | None:
    try:
        if found["under"]:
            value = float(found["whole"] or 0) + float(found["over"]) / float(found["under"])
        else:
            value = float(found["digits"].replace(",", "") + (found["exponent"] or "")) ** float(found["power"] or 1)
    except (OverflowError, ZeroDivisionError):
        return None
    value *= SCALES.get((found["scale"] or "").lower(), 1)
    sign = -1 if (found["sign"] or "+").strip() != "+" else 1
    return sign * value if math.isfinite(value) else None
