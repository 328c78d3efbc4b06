"""Multiple choice: how options are written, and which letter an answer states.

The rule of MMMU's `parse_multi_choice_response` (MMMU-Benchmark/MMMU, mmmu-pro/evaluate.py), which many benchmarks take
over with small changes: the first way of writing a letter that occurs at all decides, and among several letters
written in that way the last; in an answer of more than five words, failing that, the option whose words occur last.
Where MMMU guesses at random, an answer without a letter is None: it counts as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from ral_system.errors import DataError
from ral_system.rewards.verifiers import multiple_choice
from ral_system.rewards.verifiers.exact import same_words
from ral_system.rewards.verifiers.markup import bare, undressed

Form = tuple[str, str]
"""How a letter is written, and how it is looked for when the last of several is wanted."""
Forms = tuple[Form, ...]

MMMU: Forms = (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} "))
COMMON: Forms = (*((form, form) for form in ("({})", " {}.", " {})", " {}:", " {} ")),)
"""For benchmarks whose authors publish no rule: in brackets, before a full stop, a bracket or a colon, alone."""

_MARKS = ",.!?;:'"
_ARTICLE = re.compile(r"\b[AI](?= (?!(?:is|was|and|or|but|because|since|as|seems|looks|would|has)\b)\w\w)")
"""The article of `A man`, the pronoun of `I think`; the A of `A is correct` is a letter."""
_MANY_WORDS = 5
_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)
_OWN_LETTER = re.compile(r"\(?[A-Z][.)]\s*")


def lettered(options: Sequence[str], form: str = "{}. {}") -> str:
    """The options one per line: `A. red`."""
    return "\n".join(form.format(letter, option) for letter, option in zip(ascii_uppercase, options, strict=False))


def without_letters(options: Sequence[str]) -> tuple[str, ...]:
    """Options that are written `A. red`, `(B) blue`, without the letter, if every one has its own."""
    for letter, option in zip(ascii_uppercase, options, strict=False):
        if not _OWN_LETTER.match(option) or option.lstrip("(")[0] != letter:
            return tuple(options)
    return tuple(_OWN_LETTER.sub("", option, count=1) for option in options)


def checked_letter(answer: str, options: Sequence[str]) -> str:
    """The reference's letter, `(B)` or `B`. Raises DataError where there is no such option."""
    letter = answer.strip().strip("().")
    if len(letter) != 1 or letter not in ascii_uppercase[: len(options)]:
        raise DataError(f"answer: {answer[:40]!r} is not one of the {len(options)} options")
    return letter


def common_letter(response: str, options: Sequence[str]) -> str | None:
    """The option that an answer states, for benchmarks whose authors publish no rule: the letter that training would
    reward (`rewards.verifiers.multiple_choice`); else the option whose very text it is; else by the rule above.
    """
    letters = ascii_uppercase[: len(options)]
    letter = multiple_choice.letter(response)
    if letter is not None and letter in letters:
        return letter
    words = bare(response)
    same = [own for own, option in zip(letters, options, strict=False) if same_words(bare(option), words)]
    if words and len(same) == 1:
        return same[0]
    plain = " ".join(undressed(response).split())
    return stated_letter(_ARTICLE.sub(lambda word: word[0].lower(), plain), options, COMMON)


def stated_letter(response: str, options: Sequence[str], forms: Forms) -> str | None:
    """The option that an answer states, by the rule above."""
    answer = response.strip()
    for mark in _MARKS:
        answer = answer.strip(mark)
    answer = f" {answer} "
    letters = ascii_uppercase[: len(options)]
    for form, sought in forms:
        written = [letter for letter in letters if form.format(letter) in answer]
        if written:
            return _last(written, [answer.rfind(sought.format(letter)) for letter in written])
    if len(answer.split()) <= _MANY_WORDS:
        return None
    places = [answer.lower().rfind(option.lower()) if option else -1 for option in options]
    return _last(letters, places) if max(places, default=-1) >= 0 else None


def first_letter(response: str, known: str) -> str | None:
    """The first of these capitals, wherever it stands but in phrases that announce an answer."""
    for prefix in _PREFIXES:
        response = response.replace(prefix, "")
    return next((character for character in response if character in known), None)


def _last(letters: Sequence[str], places: Sequence[int]) -> str:
    return letters[places.index(max(places))]
