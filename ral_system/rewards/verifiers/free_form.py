"""Free text, by its overlap with the reference (Video-R1's free-form reward)."""

from __future__ import annotations

import functools
import re

from rouge_score.rouge_scorer import RougeScorer

from ral_system.config.reward import JudgeConfig

_WORD = re.compile(r"[a-z0-9]+")
_NUMBER = re.compile(r"(?<!\w)[-\N{MINUS SIGN}]?\d+(?:[.,]\d+)*")
_KINDS = ("rouge1", "rouge2", "rougeL")


def score(given: str, reference: str, config: JudgeConfig) -> float:
    """Mean of the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, words stemmed; ROUGE-2 only where there are two words.

    A number is one word with its sign and its decimals: `-5` is not `5`, and `3.5` not `5.3`; `1,000` is `1000`.
    """
    given, reference = (_NUMBER.sub(_as_word, text) for text in (given, reference))
    words = len(_WORD.findall(reference.lower()))
    if not words:
        raise ValueError(f"the reference answer {reference!r} has no words that ROUGE reads (letters a to z, digits)")
    kinds = _KINDS if words > 1 else ("rouge1", "rougeL")
    found = _scorer().score(reference, given)
    return sum(found[kind].fmeasure for kind in kinds) / len(kinds)


def _as_word(number: re.Match[str]) -> str:
    """Letters and digits only, which is all that ROUGE reads."""
    digits = number[0].lstrip("-\N{MINUS SIGN}")
    return ("" if digits == number[0] else "minus") + digits.replace(",", "").replace(".", "point")


@functools.cache
def _scorer() -> RougeScorer:
    return RougeScorer(list(_KINDS), use_stemmer=True)
