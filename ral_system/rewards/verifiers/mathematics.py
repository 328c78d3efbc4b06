"""Mathematical equivalence, by math-verify: `1/2`, `0.5` and `\\frac{1}{2}` are the same."""

from __future__ import annotations

import functools
import logging
import re
from decimal import Decimal
from typing import Any

from math_verify import parse, verify

from ral_system.config.schema import RewardConfig
from ral_system.rewards.verifiers.numbers import read_number

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of timeouts that it leaves to us

_MARKS = ("$", "\\boxed", "\\(", "\\[")
_WORD = re.compile(r"(?<![\\A-Za-z0-9])[A-Za-z]{2,}")
"""Words of prose; `xy` in `2xy` is none."""
_SAID = re.compile(r"\bis\b|=")
_UNIT = re.compile(r"\s+[A-Za-z]{2,}(?:\^\{?\d\}?)?\W{0,3}$")
_FUNCTIONS = {"sqrt", "sin", "cos", "tan", "log", "ln", "exp", "pi"}
_ROOT, _LATEX_ROOT = re.compile(r"√\s?(\w+|\([^()]*\))"), r"\\sqrt{\1}"
_PI, _LATEX_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), r"\\pi"


def score(given: str, reference: str, config: RewardConfig) -> float:
    """1 where the two are equal as expressions, sets, intervals or equations, else 0."""
    return _score(given.strip(), reference.strip())


@functools.lru_cache(4096)  # a group's answers repeat each other
def _score(given: str, reference: str) -> float:
    gold = _parsed(reference)
    if not gold:
        raise ValueError(f"the reference answer {reference!r} is no mathematics")
    return float(verify(gold, _parsed(given), timeout_seconds=None))


@functools.lru_cache(4096)
def _parsed(text: str) -> list[Any]:
    return parse(_as_latex(text), parsing_timeout=None)


def _as_latex(text: str) -> str:
    """math-verify reads LaTeX between marks, and of anything else the last number: `x^2 - 1` would be 1.

    So a formula without marks gets them. Of prose it is the one number, or what stands after its one `is` or `=`.
    """
    text = _ROOT.sub(_LATEX_ROOT, " ".join(text.strip(" *").split()))
    if any(mark in text for mark in _MARKS):
        return text
    if _in_words(text):
        if (number := read_number(text)) is not None:
            return text if "%" in text else f"${Decimal(repr(number)):f}$"  # percents it reads both ways
        text = _UNIT.sub("", _SAID.split(text, maxsplit=1)[-1])
        if _in_words(text) or _SAID.search(text):
            return ""
    return f"${_PI.sub(_LATEX_PI, text)}$"


def _in_words(text: str) -> bool:
    return not set(_WORD.findall(text)) <= _FUNCTIONS
