r"""The letter of an option: `B`, `(b)`, `**B.** a red cube`, `B - red`, `it's B`, `B is correct`, `\boxed{\text{B}}`.

A letter that belongs to the words of an option is no answer: `B. J. K. Rowling`, `D. Both A and B`, `A man`.
"""

from __future__ import annotations

import re

from ral_system.config.schema import RewardConfig
from ral_system.rewards.verifiers.exact import same_words

_MARKDOWN = str.maketrans("*_`$", "    ")
_STYLE = r"\\(?:text(?:bf)?|math(?:bf|rm))\{"
_LATEX = re.compile(rf"{_STYLE}|\\boxed\{{|\}}")
_WORD = re.compile(r"[AI](?<!\w\w)(?=[ \t]+(?!(?:is|was|and|or|but|because|since|as|seems|looks|would|has)\b)\w\w)")
"""The article of `A man`, the pronoun of `I think`; the A of `A is correct` is a letter."""

_JOIN = r"\W{0,3}(?:[,/&]|\b(?:or|and)\b)\W{0,3}"
_CAPITAL = r"([A-Z])(?<!\w\w)\b(?![-'’]\w|\W{0,2}\s(?:is\s+(?:not|incorrect|wrong|false)|isn['’]t)\b)"
"""Not of `B-flat`, nor of `option B is wrong`."""
_ALONE = re.compile(r"\W*([A-Za-z])\W*")
_LEADING = re.compile(rf"\W*(?!I\s*,)([A-Za-z])(?:{_JOIN}{_CAPITAL}|\s*[.):,\]–—]|\s+-+\s|[ \t]*\n|\s*\([^()]*\)\W*$)")
_BE = r"\s+(?:is|would\s+be)"
_SUBJECT = rf"(?:(?:[Aa]nswer|ANSWER|[Oo]ption|[Cc]hoice|[Ll]etter)(?:{_BE})?|[Ii]t(?:['’]s|{_BE}))"
_NAMED = re.compile(
    rf"\b{_SUBJECT}\s*:?\s*[^\w\s]*(?:{_CAPITAL}(?:{_JOIN}{_CAPITAL})?|([a-z])(?=[^\w\n]*$))", re.MULTILINE
)
_CONFIRMED = re.compile(rf"{_CAPITAL}\W{{0,2}}\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b")
_BOXED = re.compile(rf"\\boxed\{{\s*(?:{_STYLE})?\s*\(?([A-Za-z])\s*[.):}}]")
_LIST = re.compile(rf"\W*[A-Za-z](?:(?:\W+[A-Za-z])+|(?:{_JOIN}[A-Za-z])+)\W*")
_ONE = re.compile(r"\b[A-Za-z]\b")
_HEDGED = re.compile(
    r"(?:[;,/]|[\s(](?:or|and|but|maybe|perhaps|possibly|rather)\b)\s*(?:\(([A-Z])\)|([A-Z])[.):]\s+\w)"
    r"|[\s(](?<!\b[A-Z]\s)(?:or|but|maybe|perhaps|possibly|rather)\s+([A-Z])(?=\W*$)"  # not of `D. Either A or B`
)
_REFERENCE = re.compile(r"\W*([A-Za-z])(?:\W*|\s*[.):\]].*)", re.DOTALL)
"""No comma after the letter: `I, Claudius` is words."""


def score(given: str, reference: str, config: RewardConfig) -> float:
    """1 for the reference's letter; where the reference is no letter, 1 for its very words. Two letters are 0, in the
    reference too.
    """
    if (expected := _REFERENCE.fullmatch(reference)) is None:
        return float(_LIST.fullmatch(reference) is None and same_words(given, reference))
    return float(letter(given) == expected[1].upper())


def letter(text: str) -> str | None:
    """The one option that a text names, upper case; None for none, and for more than one."""
    boxed = _BOXED.findall(text)
    if (alone := _ALONE.fullmatch(text) or _ALONE.fullmatch(text := undressed(text))) is not None:
        return alone[1].upper()
    if _LIST.fullmatch(text) is not None:
        return _only(_ONE.findall(text))
    found = [*_NAMED.finditer(text), *_CONFIRMED.finditer(text)]
    if (leading := _LEADING.match(text)) is not None:
        found.append(leading)
    hedges = _HEDGED.finditer(text, min(match.start() for match in found)) if found else ()
    return _only([*boxed, *(one for match in (*found, *hedges) for one in match.groups() if one)])


def undressed(text: str) -> str:
    """Without the Markdown and LaTeX around a letter, and with A and I small where they are words."""
    text = text.translate(_MARKDOWN)
    if "\\" in text:
        text = _LATEX.sub(" ", text)
    return _WORD.sub(lambda word: word[0].lower(), text)


def _only(letters: list[str]) -> str | None:
    named = {each.upper() for each in letters}
    return named.pop() if len(named) == 1 else None
