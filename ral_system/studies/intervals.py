"""Intervals over seeds: how far a mean of few independent runs can be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ral_system.evaluation.paired import t_quantile


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds and the ends of its interval; without ends if there was one seed."""

    mean: float
    low: float | None
    high: float | None


def over_seeds(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean. Give paired differences to compare two arms on the same seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = t_quantile(0.5 + level / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
