r"""The one formula of an answer, as LaTeX, and its unit: what math-verify is given to read.

Left to itself math-verify picks the last formula of a text, drops what looks like a unit, and knows few notations but
LaTeX. Here the answer is chosen first: of prose it is the one number, or what follows the first `is`, `:` or `=`. Prose
before it that holds a number or a denial makes it no answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate

from ral_system.rewards.verifiers.markup import boxed, without_html
from ral_system.rewards.verifiers.numbers import DENIALS, TIMES_TEN, one_line, read_quantity
from ral_system.rewards.verifiers.units import MARK, NONE, Unit, unit_at, without_money

_LONGEST, _DEEPEST = 400, 8
"""Characters, and brackets in brackets: math-verify takes milliseconds a character, and seconds from 12 brackets on."""
_SYMBOLS = str.maketrans(
    {"π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "×": r"\times ", "·": r"\cdot "}
    | {"⋅": r"\cdot ", "÷": r"\div ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ", "≈": "=", "∅": r"\emptyset "}
)
_DELIMITER = re.compile(r"\$\$?|(?<!\\)\\[()\[\]]")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox|operatorname) ?\{([^{}]*)\}")
_BOLD = re.compile(r"(?<![\w)])\*\*([^*]+)\*\*(?!\w)")
_SAID = re.compile(r"\b(?:is|equals)\b|=|:(?!\d)")
_REFUSED = re.compile(rf"(?<![\w^])\d|\b(?:{DENIALS}|or)\b|n['’]t", re.IGNORECASE)
"""In the prose before a formula: another number, a denial, a bound."""

_FUNCTIONS = ["arcsin", "arccos", "arctan", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "pi"]
_INFINITY = ["infinity", "inf", "oo"]
_NO_WORDS = {*_FUNCTIONS, *_INFINITY, "sqrt", "and", "or"}
_WORD = re.compile(r"(?<![\\A-Za-z0-9])[A-Za-z]{2,}")
"""Words of prose; `xy` in `2xy` is none."""
_ENVIRONMENT = re.compile(r"\\(?:begin|end) ?\{\w+\}")
_UNIT_MAY_START = re.compile(rf"(?<=[\w)}}\]!. ])(?=[^\W\d_]|[%\\°{MARK}€¢£¥Ω℃℉])")

_REWRITTEN = (
    (re.compile(r"√ ?(\w+|\([^()]*\))|(?<![\\A-Za-z])sqrt ?\(([^()]*)\)"), r"\\sqrt{\1\2}"),
    (re.compile(rf"(?<![\\A-Za-z])({'|'.join(_FUNCTIONS)})(?![A-Za-z])"), r"\\\1 "),
    (re.compile(rf"(?<![\\A-Za-z])(?:{'|'.join(_INFINITY)})(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"_ ?(\d) (?=\d)"), r"_{\1} "),
    (re.compile(r"\\(?:[dtc]?frac) ?(\d) ?(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"(?<![\w.}\\^])(\d+) (\d+) ?/ ?(\d+)(?![\w.])"), r"(\1+\\frac{\2}{\3})"),
    (re.compile(r"(?<=[\w)])\*\*(?=[\w({-])"), "^"),
    (re.compile(r"\^ ?-(\d+(?:\.\d+)?|[a-z])"), r"^{-\1}"),
    (re.compile(r"\\approx\b"), "="),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])"), ""),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"!="), r"\\ne "),
)
"""Plain notations that math-verify does not read, as LaTeX; a mixed number is a sum."""
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+\.?\d*|\.\d+)[eE]([-+]?\d{1,3})(?![\w.])")
_NUMBERS_SIDE_BY_SIDE = re.compile(r"\d \.?\d")


@dataclass(frozen=True, slots=True)
class Formula:
    r"""Example: `the area is 2\pi cm^2` is `Formula(r"2\pi", Unit((("cm", 2),)), "")`."""

    latex: str
    unit: Unit = NONE
    with_letter: str = ""
    """LaTeX with the letter directly behind a number, as in `4s`, which may mean seconds or a variable."""


def read_formula(text: str) -> Formula | None:
    """The formula that a text states; None where it states none, or several."""
    inside = boxed(text)
    text = text if inside is None else inside
    if len(text) > _LONGEST:
        return None
    text, money = without_money(one_line(without_html(text)).replace("=>", " "))
    text = _TEXT.sub(lambda dressed: f" {MARK}{dressed[1].strip()} ", _BOLD.sub(r"\1", text))
    if (undelimited := _undelimited(text)) is None:
        return None
    found = _of_prose(" ".join(undelimited.split()).strip(" *_`").rstrip(".,;: "))
    return found if found is None or money is NONE else Formula(found.latex, money)


def _undelimited(text: str) -> str | None:
    """Remove the marks of formulas, with a comma between adjacent formulas. None if a mark has no partner."""
    parts = _DELIMITER.split(text)
    if len(parts) % 2 == 0:
        return None
    prose = [parts[0], *(part if part.strip() else "," for part in parts[2:-1:2]), parts[-1]]
    formulas = [_WORD.sub(_letters, part) for part in parts[1::2]]
    return "".join(f"{words} {formula} " for words, formula in zip(prose, [*formulas, ""], strict=False))


def _letters(word: re.Match[str]) -> str:
    """Letters side by side in a formula are factors, unless they name a function or a unit, or stand in `\\text{}`."""
    known = word[0] in _NO_WORDS or unit_at(word[0])[1] == len(word[0]) or word.string[word.start() - 1] == MARK
    return word[0] if known else " ".join(word[0])


def _of_prose(text: str) -> Formula | None:
    if (found := _bare_formula(text)) is not None or not _in_words(text):
        return found
    if (number := read_quantity(text.replace(MARK, ""))) is not None:
        return Formula(f"{Decimal(repr(number.value)):f}", number.unit)
    said = _SAID.search(text)
    if said is None or _REFUSED.search(text[: said.start()]):
        return None
    return _bare_formula(text[said.end() :].strip(" :="))


def _bare_formula(text: str) -> Formula | None:
    value, unit, letter = _without_unit(text)
    if not value or _in_words(value) or (latex := _as_latex(value)) is None:
        return None
    return Formula(latex, unit, f"{latex} {letter}" if letter else "")


def _without_unit(text: str) -> tuple[str, Unit, str]:
    """The text, the unit at its end, and the letter that may be a variable instead of a unit."""
    for start in _UNIT_MAY_START.finditer(text):
        place = start.start()
        unit, end = unit_at(text, place)
        value = text[:place].rstrip(" \\")
        if end < len(text) or end == place or "%" in value:
            continue
        letter = text[place:] if len(text) == place + 1 and text[place].isalpha() else ""
        bare_letter = text[place].isalpha() and not text[place + 1 : place + 2].isalpha()
        if not bare_letter:
            return value, unit, ""
        number = read_quantity(value)
        if number is not None and number.unit == NONE:
            return value, unit, letter if len(value) == place else ""
    return text, NONE, ""


def _in_words(text: str) -> bool:
    words = set(_WORD.findall(_ENVIRONMENT.sub("", text)))
    return not words <= _NO_WORDS and not (len(text) == 2 and words == {text})  # `AB` alone is a product


def _as_latex(text: str) -> str | None:
    text = _SCIENTIFIC.sub(lambda number: f"{Decimal(number[0]):f}", TIMES_TEN.sub(r"e\1", text.replace(MARK, "")))
    text = text.translate(_SYMBOLS)
    for pattern, latex in _REWRITTEN:
        text = pattern.sub(latex, text)
    depths = accumulate((character in "([{") - (character in ")]}") for character in text)
    if _NUMBERS_SIDE_BY_SIDE.search(text) or max(depths, default=0) > _DEEPEST:
        return None
    return text.strip("= ").rstrip("\\ ")
