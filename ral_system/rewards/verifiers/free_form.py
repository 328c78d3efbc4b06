"""Free text, by its overlap with the reference (Video-R1's free-form reward)."""

from __future__ import annotations

import functools

from rouge_score.rouge_scorer import RougeScorer

from ral_system.config.schema import RewardConfig

_KINDS = ("rouge1", "rouge2", "rougeL")


def score(given: str, reference: str, config: RewardConfig) -> float:
    """Mean of the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, words stemmed."""
    found = _scorer().score(reference, given)
    return sum(found[kind].fmeasure for kind in _KINDS) / len(_KINDS)


@functools.cache
def _scorer() -> RougeScorer:
    return RougeScorer(list(_KINDS), use_stemmer=True)
