"""How much better one way of training is than another, from runs with the same seeds, asked the same questions.

Seeds and questions are both drawn from many that could have been: an interval that ignores either is too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import atan, ceil, inf, isnan, nan, sqrt

import numpy as np

_ANGLES = np.linspace(0, np.pi / 2, 20_001)
_MOST_SEEDS = 10_000


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean difference of scores over seeds and questions."""

    mean: float
    low: float
    """Lower end of the interval; NaN with fewer than two seeds or questions."""
    high: float
    p: float
    """Two-sided probability of a mean at least as far from 0 if the true one is 0; NaN as above."""
    seed_deviation: float
    """Standard deviation over seeds of a seed's difference on these questions; NaN with one seed."""


def paired_difference(of_SQ: np.ndarray, over_SQ: np.ndarray, level: float = 0.95) -> Difference:
    """Return the mean of `of − over`, [seeds, questions] each, with a t interval for new seeds and new questions.

    Two-way random effects without replication: with mean squares of seeds MS_S, questions MS_Q and the rest MS_E, the
    variance of the mean is (MS_S + MS_Q − MS_E) / (S·Q), here at least max(MS_S, MS_Q) / (S·Q), with Satterthwaite's
    degrees of freedom. If every score is equal, the interval is a point and p is 1.
    """
    d_SQ = np.asarray(of_SQ, dtype=float) - np.asarray(over_SQ, dtype=float)
    seeds, questions = d_SQ.shape
    mean, by_seed = float(d_SQ.mean()), d_SQ.mean(1)
    deviation = float(by_seed.std(ddof=1)) if seeds > 1 else nan
    if seeds < 2 or questions < 2:
        return Difference(mean, nan, nan, nan, deviation)
    by_question = d_SQ.mean(0)
    rest_SQ = d_SQ - by_seed[:, None] - by_question[None, :] + mean
    ms_seed, ms_question = questions * by_seed.var(ddof=1), seeds * by_question.var(ddof=1)
    ms_rest = (rest_SQ**2).sum() / ((seeds - 1) * (questions - 1))
    spread = max(ms_seed, ms_question, ms_seed + ms_question - ms_rest)
    if spread <= 1e-12:
        return Difference(mean, mean, mean, 1.0 if abs(mean) < 1e-12 else 0.0, deviation)
    parts = (ms_seed, seeds - 1), (ms_question, questions - 1), (ms_rest, (seeds - 1) * (questions - 1))
    freedom = min(max(spread**2 / sum(ms**2 / df for ms, df in parts), 1.0), questions - 1.0)
    error = sqrt(spread / d_SQ.size)
    half = t_quantile(0.5 + level / 2, freedom) * error
    return Difference(mean, mean - half, mean + half, two_sided_p(mean / error, freedom), deviation)


def holm(p_by_name: Mapping[str, float]) -> dict[str, float]:
    """Adjust several p-values so that the chance of any false claim keeps its bound (Holm 1979). NaN stays NaN, and
    counts for nothing.
    """
    ordered = sorted((p, name) for name, p in p_by_name.items() if not isnan(p))
    adjusted, largest = dict.fromkeys(p_by_name, nan), 0.0
    for place, (p, name) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - place) * p))
        adjusted[name] = largest
    return adjusted


def seeds_needed(seed_deviation: float, difference: float, power: float = 0.8, level: float = 0.95) -> float:
    """Return how many seeds a paired t-test over seeds needs to find `difference` with this power, on questions held
    fixed; infinity beyond ten thousand, NaN without a deviation.
    """
    if isnan(seed_deviation):
        return nan

    def enough(seeds: float) -> float:
        quantiles = t_quantile(0.5 + level / 2, seeds - 1) + t_quantile(power, seeds - 1)
        return (quantiles * seed_deviation / difference) ** 2

    seeds = max(2, ceil(enough(_MOST_SEEDS)))  # the fewest that the normal distribution would ask for
    while seeds <= _MOST_SEEDS and enough(seeds) > seeds:
        seeds += 1
    return seeds if seeds <= _MOST_SEEDS else inf


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
