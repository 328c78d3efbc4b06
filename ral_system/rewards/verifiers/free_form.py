"""Free text, by its overlap with the reference (Video-R1's free-form reward)."""

from __future__ import annotations

import functools
import re

from rouge_score.rouge_scorer import RougeScorer

from ral_system.config.schema import RewardConfig

_WORD = re.compile(r"[a-z0-9]+")
_KINDS = ("rouge1", "rouge2", "rougeL")


def score(given: str, reference: str, config: RewardConfig) -> float:
    """Mean of the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, words stemmed; ROUGE-2 only where there are two words."""
    words = len(_WORD.findall(reference.lower()))
    if not words:
        raise ValueError(f"the reference answer {reference!r} has no words that ROUGE reads (letters a to z, digits)")
    kinds = _KINDS if words > 1 else ("rouge1", "rougeL")
    found = _scorer().score(reference, given)
    return sum(found[kind].fmeasure for kind in kinds) / len(kinds)


@functools.cache
def _scorer() -> RougeScorer:
    return RougeScorer(list(_KINDS), use_stemmer=True)
