r"""The letter of an option: `B`, `(b)`, `**B.** a red cube`, `B - red`, `The answer is B`, `\boxed{\text{B}}`.

Strict: an answer is a letter, perhaps announced in words that say nothing else, and then either ends or goes on as an
option does. Of other prose no letter is read, so a wrong one is hardly ever rewarded. Nor is one read where
another letter follows or the first is taken back (`C - wait, D`): a policy that is paid for the last of several letters
would learn to try several.
"""

from __future__ import annotations

import re

from ral_system.config.reward import JudgeConfig
from ral_system.rewards.verifiers.exact import same_words
from ral_system.rewards.verifiers.markup import bare, boxed, undressed

_ANNOUNCED = (
    r"(?i:(?:(?:based on|according to|looking at|judging (?:by|from)|from|given|in)(?: (?:a|[a-z'’]{2,}))+, )?"
    r"(?:(?:so|thus|therefore|hence|i|we|think|believe|say|choose|pick|select|go with|going with|['’]m|am|the|this|my"
    r"|our|final|best|correct|right|most likely|answer|option|choice|one|letter|it|is|it['’]s|must|should|would|will|be"
    r"|definitely|clearly|here)\b[^\w.]*)*)"
)
_LETTER = re.compile(
    rf"\W*{_ANNOUNCED}([A-Za-z])"
    r"(?:\W*$"
    r"|[)\]]*(?:[)\]]|\s*:|\.(?!\w\.)|\s+[-–—])(?!\s*(?:is|was|or|and|nor)\b)"  # not of `a.m.`, `(A) is wrong`
    r"|\s*\n|\W*\s(?:because|since|as)\b|[)\]]*\W*\sis\s+(?:the\s+)?(?:correct|right|best|answer)\b"
    r"|(?<=[A-Z]),\s+(?![A-Za-z]\W*(?:$|[,;])))"  # not of `A, B`
)
_BETWEEN = (
    r"wait|no|nope|not? sure|hold on|hmm|oh|actually|sorry|or|but|rather|instead|maybe|perhaps|possibly|probably|also"
    r"|could|may|might|i|mean|meant|think|guess|it|it['’]s|is|be|should|would|must|so|then|now|the|my|final|best|correct"
    r"|right|answer|option|choice|letter|either|even"
)
_ANOTHER = re.compile(
    rf"(?:^|[,;.:!?)\n/–—-])[\s(\[]*(?i:(?:{_BETWEEN})\b[^\w]{{1,4}}){{0,8}}([A-HJ]|[b-hj])"
    r"(?=\W*$|\s?[)\]:]|\s[-–—]\s|,?\s(?:is|was)\s(?:also\s)?(?:the\s)?(?:correct|right|best|answer)\b|\sbecause\b)"
)
"""A letter that is answered after the first: at the end, or written as an option is; not those of `B. both A and C`."""
_TAKEN_BACK = re.compile(
    r"\bwait ?(?:[,.!…–—-]|no\b)|\b(?:actually|oh|hmm|sorry),? no\b|\b(?:scratch that|on second thoughts?|i meant?"
    r"|changed my mind|my mistake|correction:)",
    re.IGNORECASE,
)
_REFERENCE = re.compile(r"\W*([A-Za-z])(?:\W*|\s*[.):\]].*)", re.DOTALL)
"""No comma after the letter: `I, Claudius` is words."""


def score(given: str, reference: str, config: JudgeConfig) -> float:
    """Return 1 for the reference's letter; if the reference is not a letter, 1 for its exact words."""
    if (expected := _REFERENCE.fullmatch(reference)) is None:
        given, reference = (bare(given), bare(reference)) if bare(reference) else (given, reference)
        return float(same_words(given, reference))
    return float(letter(given) == expected[1].upper())


def letter(text: str) -> str | None:
    """The one option that a text names, upper case, or None. A box counts alone; different boxes name none."""
    inside = boxed(text)
    lines = undressed(text if inside is None else inside).splitlines()
    text = "\n".join(" ".join(line.split()) for line in lines if line.strip())
    if (found := _LETTER.match(text)) is None:
        return None
    rest = text[found.end(1) :]
    others = {another[1].upper() for another in _ANOTHER.finditer(rest)} - {found[1].upper()}
    return None if others or _TAKEN_BACK.search(rest) else found[1].upper()
