"""How much better one way of training is than another, from runs with the same seeds, asked the same questions.

Seeds and questions are both drawn from many that could have been: an interval that ignores either is too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import atan, inf, isnan, nan, sqrt

import numpy as np

_ANGLES = np.linspace(0, np.pi / 2, 20_001)
_MOST_SEEDS = 10_000


@dataclass(frozen=True, slots=True)
class Components:
    """Variance components of paired differences: of seeds, of questions, and of one answer beyond both."""

    seeds: float
    questions: float
    rest: float

    def of_mean(self, seeds: float, questions: float) -> float:
        """Variance of the mean over so many seeds and questions."""
        return self.seeds / seeds + self.questions / questions + self.rest / (seeds * questions)


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean difference of scores over seeds and questions."""

    mean: float
    low: float
    """Lower end of the interval; NaN with fewer than two seeds or questions."""
    high: float
    p: float
    """Two-sided probability of a mean at least as far from 0 if the true one is 0; NaN as above."""
    questions: int
    components: Components | None
    """None with fewer than two seeds or questions."""


def paired_difference(of_SQ: np.ndarray, over_SQ: np.ndarray, level: float = 0.95) -> Difference:
    """Return the mean of `of − over`, [seeds, questions] each, with a t interval for new seeds and new questions.

    Two-way random effects without replication: with mean squares of seeds MS_S, questions MS_Q and the rest MS_E, the
    variance of the mean is (MS_S + MS_Q − MS_E) / (S·Q), here at least max(MS_S, MS_Q) / (S·Q), with Satterthwaite's
    degrees of freedom. If every score is equal, the interval is a point and p is 1.
    """
    d_SQ = np.asarray(of_SQ, dtype=float) - np.asarray(over_SQ, dtype=float)
    seeds, questions = d_SQ.shape
    mean, by_seed, by_question = float(d_SQ.mean()), d_SQ.mean(1), d_SQ.mean(0)
    if seeds < 2 or questions < 2:
        return Difference(mean, nan, nan, nan, questions, None)
    rest_SQ = d_SQ - by_seed[:, None] - by_question[None, :] + mean
    ms_seed, ms_question = float(questions * by_seed.var(ddof=1)), float(seeds * by_question.var(ddof=1))
    ms_rest = float((rest_SQ**2).sum() / ((seeds - 1) * (questions - 1)))
    components = Components(max(0.0, ms_seed - ms_rest) / questions, max(0.0, ms_question - ms_rest) / seeds, ms_rest)
    spread = max(ms_seed, ms_question, ms_seed + ms_question - ms_rest)
    if spread <= 1e-12:
        return Difference(mean, mean, mean, 1.0 if abs(mean) < 1e-12 else 0.0, questions, components)
    parts = (ms_seed, seeds - 1), (ms_question, questions - 1), (ms_rest, (seeds - 1) * (questions - 1))
    freedom = min(max(spread**2 / sum(ms**2 / df for ms, df in parts), 1.0), questions - 1.0)
    error = sqrt(spread / d_SQ.size)
    half = t_quantile(0.5 + level / 2, freedom) * error
    return Difference(mean, mean - half, mean + half, two_sided_p(mean / error, freedom), questions, components)


def holm(p_by_name: Mapping[str, float]) -> dict[str, float]:
    """Adjust several p-values so that the chance of any false claim keeps its bound (Holm 1979). NaN, of a claim that
    could not be tested, stays NaN and counts as one of the claims.
    """
    ordered = sorted((p, name) for name, p in p_by_name.items() if not isnan(p))
    adjusted, largest = dict.fromkeys(p_by_name, nan), 0.0
    for place, (p, name) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(p_by_name) - place) * p))
        adjusted[name] = largest
    return adjusted


def seeds_needed(
    components: Components, questions: int, difference: float, *, power: float = 0.8, level: float = 0.95
) -> float:
    """Return how many seeds find `difference` with this power, asked so many questions; infinity where no number of
    seeds does, because there are too few questions, or where it takes more than ten thousand.
    """

    def suffices(seeds: int) -> bool:
        quantiles = t_quantile(0.5 + level / 2, seeds - 1) + t_quantile(power, seeds - 1)
        return quantiles * sqrt(components.of_mean(seeds, questions)) <= difference

    if not suffices(_MOST_SEEDS):
        return inf
    low, high = 1, _MOST_SEEDS  # the variance and both quantiles fall with the number of seeds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def t_quantile(probability: float, freedom: float) -> float:
    """Student's t at a probability of at least one half."""
    return sqrt(freedom) * float(np.tan(np.interp(2 * probability - 1, _within(freedom), _ANGLES)))


def two_sided_p(t: float, freedom: float) -> float:
    """Probability that Student's t is at least as far from 0 as `t`."""
    return 1 - float(np.interp(atan(abs(t) / sqrt(freedom)), _ANGLES, _within(freedom)))


def _within(freedom: float) -> np.ndarray:
    """Probability that |t| is at most √freedom · tan(angle), for every angle: with that substitution the density is
    proportional to cos(angle)^(freedom − 1).
    """
    density = np.cos(_ANGLES) ** (freedom - 1)
    areas = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    return areas / areas[-1]
