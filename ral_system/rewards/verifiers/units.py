"""Units in any spelling: `m/s^2`, `meters per second squared`, `°`, `$5`; and what is counted (`apples`).

Two different units never agree, and nothing is converted: a question says which unit it wants. No unit agrees with any.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_NAMES = {
    alias: line.split()[0]
    for line in (
        *("nm nanometer nanometre", "µm μm um micrometer micrometre micron", "mm millimeter millimetre"),
        *("cm centimeter centimetre", "dm decimeter decimetre", "m meter metre", "km kilometer kilometre"),
        *("inch inches", "ft foot feet", "yd yard", "mi mile", "ha hectare", "acre"),
        *("mg milligram", "g gram gm", "kg kilogram kilo", "tonne ton", "lb pound", "oz ounce"),
        *("ms millisecond", "s sec second", "min minute", "h hr hour", "day", "week", "month", "yr year"),
        *("ml milliliter millilitre cc", "cl centiliter centilitre", "l L liter litre", "gal gallon", "mph", "kmh kph"),
        *("° degree deg", "°C ℃ C celsius", "°F ℉ F fahrenheit", "K kelvin", "rad radian"),
        *("V volt", "mV", "kV", "A amp ampere", "mA", "W watt", "mW", "kW kilowatt", "MW megawatt", "Ω ohm"),
        *("J joule", "mJ", "kJ kilojoule", "MJ megajoule", "cal calorie", "kcal kilocalorie", "N newton", "kN"),
        *("Pa pascal", "kPa", "MPa", "bar", "atm", "Hz hertz", "kHz", "MHz", "GHz", "mol mole", "kWh", "eV"),
        *("$ dollar usd", "¢ cent", "€ euro eur", "£ gbp", "¥ yen", "% percent percentage pct", "unit"),
    )
    for alias in line.split()
}
_SPEEDS = {"mph": {"mi": 1, "h": -1}, "kmh": {"km": 1, "h": -1}}
_WORDS = "|".join(sorted((name for name in _NAMES if len(name) > 1), key=len, reverse=True))
_LETTERS = "".join(name for name in _NAMES if len(name) == 1 and name not in "$%")
MARK = "\x01"
r"""Stands before what was in `\text{}`: there letters are not variables."""
_FACTOR = re.compile(
    rf"(?:(?P<area>(?i:sq(?:uare)?\b\.?|cubic|cu\b\.?))[ -]?)?{MARK}?"
    rf"(?:(?:(?i:degrees?)|°) ?{MARK}?(?P<scale>[CF]|(?i:celsius|fahrenheit))|\\?(?P<percent>%)|(?P<inch>in(?=\W*$))"
    rf"|(?P<name>(?i:{_WORDS})(?i:s)?|[{_LETTERS}]))(?![A-Za-z])"
    r"(?: ?(?:\^ ?[{(]? ?|(?<=[A-Za-z])(?=\d))(?P<power>-?\d)(?!\d) ?[)}]?| (?P<raised>squared|cubed))?"
)
_JOINT = re.compile(r" ?(/|\bper\b|[·*-]|\\cdot\b| ) ?")
_MOST_FACTORS = 4
_COUNTED = re.compile(r" ?((?:[A-Za-z]+ ?){1,3})")
_NOT_COUNTED = frozenset(
    {"a", "all", "altogether", "an", "and", "answer", "are", "as", "at", "because", "but", "by", "exactly", "for"}
    | {"from", "has", "have", "here", "if", "in", "is", "it", "of", "on", "or", "per", "since", "so", "than", "that"}
    | {"the", "then", "there", "these", "this", "those", "to", "total", "was", "were", "where", "which", "while", "who"}
    | {"with"}
)
"""Words after a number that are not counted nouns."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Unit of a number: what it measures or counts; both are empty for a number alone.

    Example: `5 m/s^2` has `Unit(measure=(("m", 1), ("s", -2)))`, `5 red apples` has `Unit(counted={"red", "apple"})`
    """

    measure: tuple[tuple[str, int], ...] = ()
    counted: frozenset[str] = frozenset()


NONE, PERCENT = Unit(), Unit((("%", 1),))
_DEGREE, _TEMPERATURES = Unit((("°", 1),)), (Unit((("°C", 1),)), Unit((("°F", 1),)))


def agree(a: Unit, b: Unit) -> bool:
    """Return whether two units are the same; no unit agrees with any, `°` with `°C`, `red apples` with `apples`."""
    if NONE in (a, b) or a == b or not a.counted.isdisjoint(b.counted):
        return True
    return (a == _DEGREE and b in _TEMPERATURES) or (b == _DEGREE and a in _TEMPERATURES)


def unit_at(text: str, place: int = 0) -> tuple[Unit, int]:
    """The measure that is written at this place, and where it ends. Blanks must be single."""
    powers, sign, end = Counter[str](), 1, place
    for _ in range(_MOST_FACTORS):
        if (factor := _FACTOR.match(text, place)) is None:
            break
        end = factor.end()
        _multiply(powers, factor, sign)
        if (joint := _JOINT.match(text, end)) is None:
            break
        sign, place = -1 if joint[1] in ("/", "per") else 1, joint.end()
    return Unit(tuple(sorted((name, power) for name, power in powers.items() if power))), end


def counted_at(text: str) -> Unit:
    """Return the counted objects, from the words with which a text begins: `red apples`; none of `is the answer`."""
    found = _COUNTED.match(text)
    words = [] if found is None else found[1].lower().split()
    stop = next((i for i, word in enumerate(words) if word in _NOT_COUNTED), len(words))
    return Unit(counted=frozenset(word.removesuffix("s") for word in words[:stop]))


def without_money(text: str) -> tuple[str, Unit]:
    r"""A text without its currency sign, and the currency. Two `$` are the marks of a formula, `\$` never is."""
    signs = ["\\$", *("$" if text.count("$") == 1 else ""), "€", "£", "¥"]
    if (sign := next((sign for sign in signs if sign in text), None)) is None:
        return text, NONE
    return re.sub(rf"[A-Z]{{0,3}}{re.escape(sign)} ?", "", text), Unit(((sign[-1], 1),))


def _multiply(powers: Counter[str], factor: re.Match[str], sign: int) -> None:
    power = sign * int(factor["power"] or 1)
    if raised := factor["area"] or factor["raised"]:
        power *= 2 if raised.lower().startswith("sq") else 3
    name = _name(factor)
    for part, own in _SPEEDS.get(name, {name: 1}).items():
        powers[part] += own * power
    powers.pop("unit", None)


def _name(factor: re.Match[str]) -> str:
    if factor["scale"]:
        return "°" + factor["scale"][0].upper()
    written = factor["percent"] or ("inch" if factor["inch"] else factor["name"])
    lower = written.lower()
    return _NAMES.get(written) or _NAMES.get(lower) or _NAMES.get(lower.removesuffix("s")) or lower
