"""The response template: `<think>…</think><answer>…</answer>`, or the answer alone."""

from __future__ import annotations

import re

from ral_system.config.choices import TAGS, ResponseFormat

_TEMPLATES: dict[ResponseFormat, tuple[re.Pattern[str], tuple[str, ...]]] = {
    "think_answer": (
        re.compile(r"\s*<think>(.+)</think>\s*<answer>(.+)</answer>\s*", re.DOTALL),
        TAGS,
    ),
    "answer_only": (re.compile(r"\s*<answer>(.+)</answer>\s*", re.DOTALL), ("<answer>", "</answer>")),
}


def format_score(text: str, response_format: ResponseFormat) -> float:
    """1 when the text is the template and nothing else, else 0.

    Only whitespace may stand around the blocks, every tag of the template occurs exactly once and no other tag at all,
    and every block has content.
    """
    pattern, tags = _TEMPLATES[response_format]
    # Counting first keeps the match linear: with every tag unique there is nothing to backtrack over.
    if any(text.count(tag) != (tag in tags) for tag in TAGS):
        return 0.0
    match = pattern.fullmatch(text)
    return float(match is not None and all(block.strip() for block in match.groups()))


def extract_answer(text: str) -> str | None:
    """Content of the only `<answer>` block, stripped; None when there is no such block, or more than one.

    Independent of the template, so a right answer in a wrong frame still earns its correctness. Several blocks
    are refused, since otherwise the policy could hedge.
    """
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    before, _, rest = text.partition("<answer>")
    if "</answer>" in before:
        return None
    return rest.partition("</answer>")[0].strip()
