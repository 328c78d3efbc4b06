"""Checks of a role's text. Each returns None, or one of a few reasons why the text cannot be used."""

from __future__ import annotations

import re
from collections import defaultdict

from ral_system.rewards.format import extract_answer, format_score
from ral_system.rewards.verifiers.exact import same_words

MIN_KEPT_WORDS = 0.8
"""Share of a reasoning's words that must still be there, in their order, when anchors have been put in."""

_SPECIAL_TOKEN = re.compile(r"<\|[^|>]*\|>")
_TAG = re.compile(r"</?(?:think|answer)>")


def check_description(text: str) -> str | None:
    """Check that the text has words, and nothing that a chat or response template would read as its own."""
    if not text.strip():
        return "empty"
    if _TAG.search(text):
        return "holds a tag of the response template"
    return _foreign(text)


def check_reasoning(text: str, answer: str) -> str | None:
    """Check that the text is a response in the template with the right answer."""
    if not format_score(text, "think_answer"):
        return "not <think> … </think> <answer> … </answer>"
    given = extract_answer(text)
    if given is None or not same_words(given, answer):
        return "another answer than the right one"
    return _foreign(text)


def check_anchored(text: str, answer: str, reasoning: str, anchor: re.Pattern[str]) -> str | None:
    """Check that the text is the same response with at least one anchor added and hardly a word lost."""
    if problem := check_reasoning(text, answer):
        return problem
    if len(anchor.findall(_thought(text))) <= len(anchor.findall(_thought(reasoning))):
        return "no anchor was put in"
    if kept_words(_thought(reasoning), _thought(text)) < MIN_KEPT_WORDS:
        return "the reasoning was rewritten"
    return None


def kept_words(before: str, after: str) -> float:
    """Share of the words of `before` that `after` still has, in their order: their longest common subsequence.

    By bits, one per word of `before` (Hyyrö 2004), so thousands of words take milliseconds.
    """
    words = before.split()
    places: dict[str, int] = defaultdict(int)
    for i, word in enumerate(words):
        places[word] |= 1 << i
    every = unmatched = (1 << len(words)) - 1
    for word in after.split():
        found = unmatched & places.get(word, 0)
        unmatched = ((unmatched + found) | (unmatched - found)) & every
    return 1 - unmatched.bit_count() / max(1, len(words))


def _foreign(text: str) -> str | None:
    return "holds a special token" if _SPECIAL_TOKEN.search(text) else None


def _thought(text: str) -> str:
    return text.partition("<think>")[2].partition("</think>")[0]
