r"""The letter of an option: `B`, `(b)`, `**B.** a red cube`, `B - red`, `The answer is B`, `\boxed{\text{B}}`.

Strict: an answer is a letter, perhaps announced in words that say nothing else, and then either ends or goes on as an
option does. Of other prose no letter is read, so that a wrong one is hardly ever rewarded.
"""

from __future__ import annotations

import re

from ral_system.config.schema import RewardConfig
from ral_system.rewards.verifiers.exact import same_words
from ral_system.rewards.verifiers.markup import bare, undressed

_ANNOUNCED = (
    r"(?i:(?:so|thus|therefore|hence|i|think|choose|the|my|final|best|correct|right|answer|option|choice|one|letter"
    r"|it|is|it['’]s|must|should|would|be)\b[^\w.]*)*"
)
_LETTER = re.compile(
    rf"\W*{_ANNOUNCED}([A-Za-z])"
    r"(?:\W*$"
    r"|[)\]]*(?:[)\]]|\s*:|\.(?!\w\.)|\s+[-–—])(?!\s*(?:is|was|or|and|nor)\b)"  # not of `a.m.`, `(A) is wrong`
    r"|\s*\n|\W*\s(?:because|since|as)\s|\W*\sis\s+(?:the\s+)?(?:correct|right|best|answer)\b"
    r"|(?<=[A-Z]),\s+(?![A-Za-z]\W*(?:$|[,;])))"  # not of `A, B`
)
_REFERENCE = re.compile(r"\W*([A-Za-z])(?:\W*|\s*[.):\]].*)", re.DOTALL)
"""No comma after the letter: `I, Claudius` is words."""


def score(given: str, reference: str, config: RewardConfig) -> float:
    """1 for the reference's letter; where the reference is no letter, 1 for its very words."""
    if (expected := _REFERENCE.fullmatch(reference)) is None:
        given, reference = (bare(given), bare(reference)) if bare(reference) else (given, reference)
        return float(same_words(given, reference))
    return float(letter(given) == expected[1].upper())


def letter(text: str) -> str | None:
    """The one option that a text names, upper case; None for none. The last of several boxes counts."""
    _, boxed, inside = text.rpartition("\\boxed{")
    found = _LETTER.match(undressed(inside.rpartition("}")[0] or inside if boxed else text))
    return None if found is None else found[1].upper()
