"""The letter of an option: `B`, `(b)`, `B. a red cube`, `the answer is B`, `\\boxed{B}`."""

from __future__ import annotations

import re

from ral_system.config.schema import RewardConfig
from ral_system.rewards.verifiers.exact import same_words

_ALONE = re.compile(r"\W*([A-Za-z])\W*")
_LEADING = re.compile(r"\W*([A-Za-z])\s*[.):,]\s*(.*)", re.DOTALL)
_NAMED = re.compile(r"\b(?i:answer|option|choice)(?:\s+(?i:is))?\s*:?\s*[^\w\s]*([A-Z])\b")
_BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*([A-Za-z])\s*\}")
_HEDGED = re.compile(r"(?:[;,/]|\b(?i:or|and|but|maybe|perhaps|possibly)\b)\s*(?:\(([A-Z])\)|([A-Z])[.):]\s+\w)")
_JOINED = re.compile(r"\b([A-Z])\W{0,3}(?:,|/|&|\bor\b|\band\b)\W{0,3}([A-Z])\b(?!\w)")


def score(given: str, reference: str, config: RewardConfig) -> float:
    """1 for the reference's letter; where the reference is no letter, 1 for its very words. Two letters are 0."""
    alone, leading = _ALONE.fullmatch(reference), _LEADING.fullmatch(reference)
    if (expected := alone or leading) is None:
        return float(same_words(given, reference))
    return float(letter(given) == expected[1].upper())


def letter(text: str) -> str | None:
    """The one option that a text names, upper case; None for none, and for more than one."""
    if (alone := _ALONE.fullmatch(text)) is not None:
        return alone[1].upper()
    joined = [one for pair in _JOINED.findall(text) for one in pair]
    named = {found.upper() for found in (*_NAMED.findall(text), *_BOXED.findall(text), *joined)}
    if (leading := _LEADING.fullmatch(text)) is not None:
        named |= {leading[1].upper(), *_options_of(leading[2])}
        named |= {one for pair in _HEDGED.findall(leading[2]) for one in pair if one}
    return named.pop() if len(named) == 1 else None


def _options_of(text: str) -> set[str]:
    """Of what follows a first option: the letters, where it is a list of letters and nothing else."""
    words = [word.strip(".():,") for word in re.split(r"[\s,;/&]+", text) if word.lower() not in ("", "and", "or")]
    return set(words) if words and all(len(word) == 1 and word.isupper() for word in words) else set()
