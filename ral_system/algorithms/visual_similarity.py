"""VGPO (arXiv 2604.09349): how alike a response's tokens are to its pictures, as factors on its advantage.

Constants throughout: nothing has a gradient. Suffixes: T tokens of a response, in order; G responses of a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ral_system.config.perception import VgpoConfig

_ROUNDING = 1e-9


def visual_weights(similarity_T: np.ndarray, lowest: float, highest: float, settings: VgpoConfig) -> np.ndarray:
    """Weights w of a response's tokens, from 0 to 1: [T].

    `similarity` is scaled to [0, 1] between `lowest` and `highest`, those of the update. The ⌈`late_share` · n⌉ most
    alike of the n tokens in the second half (t > T/2, t from 1; of equal ones the first) are then raised by
    1 + `late_weight` · t/T, and all are scaled to [0, 1] within the response. All 0 where they do not differ.
    """
    total = len(similarity_T)
    scaled_T = _between(similarity_T, lowest, highest)
    late = np.arange(total // 2, total)
    count = math.ceil(settings.late_share * len(late) - _ROUNDING)
    chosen = late[np.argsort(-scaled_T[late], kind="stable")[:count]]
    scaled_T[chosen] *= 1 + settings.late_weight * (chosen + 1) / total
    return _between(scaled_T, scaled_T.min(), scaled_T.max())


def token_factors(weights_T: np.ndarray, settings: VgpoConfig) -> np.ndarray:
    """psi_t = 1 + w_t - mean w, within the bounds: [T]. Exactly 1 where all weights are 0."""
    return np.clip(1 + weights_T - weights_T.mean(), settings.least_token_factor, settings.most_token_factor)


def response_score(weights_T: np.ndarray, settings: VgpoConfig) -> float:
    """phi of a response: the mean of its tokens' weights, or with `response_score=sum` their sum."""
    return float(weights_T.mean() if settings.response_score == "mean" else weights_T.sum())


def response_factors(scores_G: Sequence[float], settings: VgpoConfig) -> np.ndarray:
    """alpha_g = 1 + s_g - mean s, within the bounds: [G]; s is phi scaled to [0, 1] within the group.

    Exactly 1 where all scores are alike.
    """
    scores = np.array(scores_G, np.float64)
    scaled_G = _between(scores, scores.min(), scores.max())
    return np.clip(1 + scaled_G - scaled_G.mean(), settings.least_response_factor, settings.most_response_factor)


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale values from [low, high] to [0, 1]; all 0 where there is nothing between the two."""
    return (values - low) / (high - low) if high > low else np.zeros(len(values))
