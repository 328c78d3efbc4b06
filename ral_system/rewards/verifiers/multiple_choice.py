r"""The letter of an option: `B`, `(b)`, `**B.** a red cube`, `B - red`, `The answer is B`, `\boxed{\text{B}}`.

The first of three decides: what is boxed, what is said to be the answer, what the text begins with. What follows the
letter changes nothing (`B. J. K. Rowling`, `D. Both A and B`), so that naming several never pays.
"""

from __future__ import annotations

import re

from ral_system.config.schema import RewardConfig
from ral_system.rewards.verifiers.exact import same_words

_MARKDOWN = str.maketrans("*_`$", "    ")
_STYLE = r"\\(?:text(?:bf)?|math(?:bf|rm))\{"
_LATEX = re.compile(rf"{_STYLE}|\\boxed\{{|\\[()]|\}}")
_WORD = re.compile(r"\b[AI](?=[ \t]+(?!(?:is|was|and|or|but|because|since|as|seems|looks|would|has)\b)\w\w)")
"""The article of `A man`, the pronoun of `I think`; the A of `A is correct` is a letter."""

_ALONE = re.compile(r"\W*([A-Za-z])\W*")
_BOXED = re.compile(rf"\\boxed\{{\s*(?:{_STYLE})?\s*\(?([A-Za-z])\s*[.):}}]")
_SAID = re.compile(
    r"\b(?i:answer|option|choice|letter|it)(?:\s+is|\s+would\s+be|['’]s)?\s*:?\s*[^\w\s]*"
    r"(?:([A-Z])\b(?![-'’]\w|\s+(?:or|and)\b|\W*\s(?:is\s+(?:not|incorrect|wrong)|isn['’]t)\b)|([a-z])\W*$)"
)
"""Not of `It is B-flat`, `the answer is A or B`, `option A is wrong`."""
_LEADING = re.compile(r"\W*([A-Za-z])(?:[.):\]]|\s*[–—\n(]|\s+-+\s|\s+(?:is|because)\b)")
_REFERENCE = re.compile(r"\W*([A-Za-z])(?:\W*|\s*[.):\]].*)", re.DOTALL)
"""No comma after the letter: `I, Claudius` is words."""


def score(given: str, reference: str, config: RewardConfig) -> float:
    """1 for the reference's letter; where the reference is no letter, 1 for its very words."""
    if (expected := _REFERENCE.fullmatch(reference)) is None:
        return float(same_words(given, reference))
    return float(letter(given) == expected[1].upper())


def letter(text: str) -> str | None:
    """The one option that a text names, upper case; None for none, and where it calls two the answer."""
    plain = undressed(text)
    if (alone := _ALONE.fullmatch(plain)) is not None:
        return alone[1].upper()
    named = _BOXED.findall(text) or ["".join(said) for said in _SAID.findall(plain)] or _leading(plain)
    letters = {each.upper() for each in named}
    return letters.pop() if len(letters) == 1 else None


def undressed(text: str) -> str:
    """Without the Markdown and LaTeX around a letter, and with A and I small where they are words."""
    text = text.translate(_MARKDOWN)
    if "\\" in text:
        text = _LATEX.sub(" ", text)
    return _WORD.sub(lambda word: word[0].lower(), text)


def _leading(text: str) -> list[str]:
    return [found[1]] if (found := _LEADING.match(text)) is not None else []
