r"""Mathematical equivalence, by math-verify: `1/2`, `0.5` and `\frac{1}{2}` are the same.

An equation counts as its right side, or as its number (`42 = x`); where two of its sides are different numbers
(`43 = 42`) it answers nothing. Two units must agree (`units`). If only one side has a percent sign, the other may be in
percent or a share: `12%` is `12` and `0.12`. A reference of at most 1 without a sign is a share.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from typing import Any

from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse, verify

from ral_system.config.reward import JudgeConfig
from ral_system.rewards.verifiers.exact import same_words
from ral_system.rewards.verifiers.formula import Formula, read_formula
from ral_system.rewards.verifiers.markup import bare
from ral_system.rewards.verifiers.units import NONE, PERCENT, agree

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of timeouts that it leaves to us

_AS_WRITTEN = LatexExtractionConfig(
    boxed_match_priority=-1,
    normalization_config=LatexNormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none"),
)
_EQUALS = re.compile(r"(?<![\\<>!])=")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_LETTER = re.compile(r"[A-Za-z]")
_DECIMALS = 6
"""To which decimals are compared, so 0.333333 is 1/3; of numbers below 1, that many significant digits."""


def score(given: str, reference: str, config: JudgeConfig) -> float:
    """1 where the two are equal as expressions, sets, intervals or equations, else 0."""
    return _score(given.strip(), reference.strip())


@functools.lru_cache(4096)  # a group's answers repeat each other
def _score(given: str, reference: str) -> float:
    gold = _read(reference)
    if gold is None:
        if "\\text" in reference and bare(reference):
            return float(same_words(bare(given), bare(reference)))
        raise ValueError(f"the reference answer {reference!r} is not a mathematical expression")
    found = _read(given)
    if found is None or not agree(found.unit, gold.unit):
        return 0.0
    return float(any(_same(expected, value) for expected, value in _compared(gold, found)))


@functools.lru_cache(4096)
def _read(text: str) -> Formula | None:
    formula = read_formula(text)
    return formula if formula is not None and _parsed(formula.latex) and _consistent(formula.latex) else None


def _compared(gold: Formula, found: Formula) -> list[tuple[str, str]]:
    if gold.with_letter and found.unit == NONE:
        return [(gold.with_letter, found.latex)]
    pairs = [(gold.latex, found.latex)]
    if found.unit == PERCENT != gold.unit:
        share = (gold.latex, rf"\frac{{{found.latex}}}{{100}}")
        return [share] if _at_most_one(gold.latex) else [*pairs, share]
    if gold.unit == PERCENT != found.unit:
        pairs.append((rf"\frac{{{gold.latex}}}{{100}}", found.latex))
    return pairs


def _at_most_one(latex: str) -> bool:
    value: Any = next(iter(_parsed(latex)), None)
    return bool(getattr(value, "is_number", False) and value.is_extended_real and abs(value) <= 1)


def _same(gold: str, found: str) -> bool:
    if gold.startswith(("(", "[")) and found.startswith(("{", "\\{")):
        return False  # math-verify takes a set for coordinates
    expected = _parsed(gold)
    return bool(
        verify(
            expected,
            _parsed(found),
            float_rounding=_decimals(expected[0]) if expected else _DECIMALS,
            allow_set_relation_comp=True,
            timeout_seconds=None,
        )
    )


@functools.lru_cache(4096)
def _parsed(latex: str) -> list[Any]:
    sides = _EQUALS.split(latex)
    if len(sides) == 2 and _is_number(sides[0]) and not _is_number(sides[1]):
        latex = f"{sides[1]}={sides[0]}"  # of `5 = x` math-verify would take the x
    return parse(f"${latex}$", [_AS_WRITTEN], fallback_mode="no_fallback", parsing_timeout=None)


def _consistent(latex: str) -> bool:
    """Return whether all sides of an equation that are numbers are equal."""
    numbers = [side for side in _EQUALS.split(latex) if _is_number(side)]
    return "," in latex or all(_same(numbers[0], other) for other in numbers[1:])


def _is_number(side: str) -> bool:
    return _LETTER.search(_COMMAND.sub("", side)) is None


def _decimals(expected: Any) -> int:
    size = abs(float(expected)) if getattr(expected, "is_Number", False) and expected.is_finite else 1.0
    return 15 if size == 0 else max(_DECIMALS, _DECIMALS - 1 - math.floor(math.log10(size)))
