"""Whether a role's text can be used. Each check returns the reason why not, or None."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from ral_system.rewards.correctness import exact_match
from ral_system.rewards.format import extract_answer, format_score

MIN_KEPT_WORDS = 0.8
"""Share of a reasoning's words that must still be there, in their order, when anchors have been put in."""

_SPECIAL_TOKEN = re.compile(r"<\|[^|>]*\|>")
_TAG = re.compile(r"</?(?:think|answer)>")


def check_description(text: str) -> str | None:
    """Words, and nothing that a chat template or the response's template would read as its own."""
    if not text.strip():
        return "empty"
    if _TAG.search(text):
        return "holds a tag of the response template"
    return _foreign(text)


def check_reasoning(text: str, answer: str) -> str | None:
    """A response in the template that ends in the right answer."""
    if not format_score(text, "think_answer"):
        return "not <think> … </think> <answer> … </answer>"
    if not exact_match(text, answer):
        return f"answers {_short(extract_answer(text) or '')!r} instead of {answer!r}"
    return _foreign(text)


def check_anchored(text: str, answer: str, reasoning: str, anchor: re.Pattern[str]) -> str | None:
    """The same response, with an anchor in its thought that was not there before, and hardly a word lost."""
    if problem := check_reasoning(text, answer):
        return problem
    if len(anchor.findall(_thought(text))) <= len(anchor.findall(_thought(reasoning))):
        return "no anchor was put in"
    if kept_words(_thought(reasoning), _thought(text)) < MIN_KEPT_WORDS:
        return "the reasoning was rewritten"
    return None


def kept_words(before: str, after: str) -> float:
    """Share of the words of `before` that `after` still has, in their order."""
    words = before.split()
    matcher = SequenceMatcher(a=words, b=after.split(), autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / max(1, len(words))


def _foreign(text: str) -> str | None:
    found = _SPECIAL_TOKEN.search(text)
    return f"holds the special token {_short(found[0])}" if found else None


def _thought(text: str) -> str:
    return text.partition("<think>")[2].partition("</think>")[0]


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
