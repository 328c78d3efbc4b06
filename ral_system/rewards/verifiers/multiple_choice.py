"""The letter of an option: `B`, `(b)`, `B. a red cube`, `the answer is B`, `\\boxed{B}`."""

from __future__ import annotations

import re

from ral_system.config.schema import RewardConfig
from ral_system.rewards.verifiers.exact import same_words

_ALONE = re.compile(r"\W*([A-Za-z])\W*")
_LEADING = re.compile(r"\W*([A-Za-z])\s*[.):,]\s*(.*)", re.DOTALL)
_NAMED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*[^\w\s]*([A-Z])\b")
_BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*([A-Za-z])\s*\}")
_OTHER = re.compile(r"(?:^|[\s(])([A-Z])[.)](?=\s|$)")


def score(given: str, reference: str, config: RewardConfig) -> float:
    """1 for the reference's letter; where the reference is no letter, 1 for its very words. Two letters are 0."""
    expected = letter(reference)
    if expected is None:
        return float(same_words(given, reference))
    return float(letter(given) == expected)


def letter(text: str) -> str | None:
    """The one option that a text names, upper case; None for none, and for more than one."""
    if (alone := _ALONE.fullmatch(text)) is not None:
        return alone[1].upper()
    if (leading := _LEADING.fullmatch(text)) is not None:
        others = set(_OTHER.findall(leading[2])) | set(_NAMED.findall(leading[2])) | _bare(leading[2])
        return leading[1].upper() if others <= {leading[1].upper()} else None
    named = set(_BOXED.findall(text)) or set(_NAMED.findall(text))
    return named.pop().upper() if len(named) == 1 else None


def _bare(text: str) -> set[str]:
    """Of `B, C` and `B or C` after the first: single capitals that are all there is, but for joining words."""
    words = [word for word in re.split(r"[\s,;/&]+", text.strip()) if word.lower() not in ("", "and", "or")]
    letters = [word.strip("().") for word in words]
    return set(letters) if letters and all(len(word) == 1 and word.isupper() for word in letters) else set()
