"""Exact match of the answer (papers 1.7)."""

from __future__ import annotations

from ral_system.rewards.format import extract_answer


def exact_match(text: str, answer: str) -> float:
    """1 when the response's answer is the reference answer, up to case and whitespace; else 0."""
    given = extract_answer(text)
    return float(given is not None and _normalised(given) == _normalised(answer))


def _normalised(answer: str) -> str:
    return " ".join(answer.split()).casefold()
