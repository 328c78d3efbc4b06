"""Bootstrap intervals: how much figures depend on which questions happened to be asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from ral_system.types import Prompt

T = TypeVar("T")

Resampled = Mapping[str, np.ndarray]
"""Each figure's value on every resample; NaN where the resample does not define it."""

RESAMPLES = 500


def unit_of(prompt: Prompt, together: str = "") -> str:
    """Return the key of questions that are drawn as one: those that count together, else those with equal media."""
    return together or "".join(medium.digest for medium in prompt.media) or prompt.id


def grouped(keyed: Iterable[tuple[str, T]]) -> list[list[T]]:
    """Group values by key, in the order in which keys first occur."""
    groups: dict[str, list[T]] = {}
    for key, value in keyed:
        groups.setdefault(key, []).append(value)
    return list(groups.values())


def bootstrap(
    units: Sequence[T],
    figures: Callable[[Sequence[T]], Mapping[str, float]],
    *,
    strata: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Compute every figure on samples of as many units, drawn with replacement (Efron 1979). Units are what was
    drawn independently: a question, or questions that share a picture. The same seed draws the same units, so two
    models' figures on the same units are paired.

    With `strata`, one per unit, each sample has as many units of every stratum as there are. A figure to which no
    stratum gives two units cannot vary, which says nothing: it is left out.
    """
    strata = ["all"] * len(units) if strata is None else strata
    places: dict[Hashable, list[int]] = {}
    for place, stratum in enumerate(strata):
        places.setdefault(stratum, []).append(place)
    found = {name: np.full(resamples, np.nan) for name in _varying(units, list(places.values()), figures)}
    if not found:
        return {}
    rng = np.random.default_rng(seed)
    for sample in range(resamples):
        drawn = [units[of[i]] for of in places.values() for i in rng.integers(len(of), size=len(of))]
        for name, value in figures(drawn).items():
            if name in found:
                found[name][sample] = value
    return found


def _varying(
    units: Sequence[T], strata: Sequence[Sequence[int]], figures: Callable[[Sequence[T]], Mapping[str, float]]
) -> list[str]:
    """List the figures to which some stratum gives two units. Most figures exist for a single unit as well; one that
    does not is a sum over strata, and missing without any of them.
    """
    alone = [Counter(name for place in of for name in figures([units[place]])) for of in strata]
    varying = {name for counts in alone for name, count in counts.items() if count > 1}
    whole = list(figures(units)) if units else []
    for name in set(whole).difference(*alone):
        for of in strata:
            rest = [unit for place, unit in enumerate(units) if place not in of]
            if len(of) > 1 and (not rest or name not in figures(rest)):
                varying.add(name)
                break
    return [name for name in whole if name in varying]


def intervals(resampled: Resampled, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Return the middle `level` of each figure's values on the resamples that define it."""
    return {name: interval(values, level) for name, values in resampled.items()}


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of one figure's resamples."""
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def paired_interval(of: Resampled, over: Resampled, name: str, level: float = 0.95) -> tuple[float, float] | None:
    """The interval of how much better one model's figure is than another's on the same units in the same order: both
    are drawn the same, so the difficulty of the questions cancels out. None where the figure has no interval.
    """
    return interval(of[name] - over[name], level) if name in of and name in over else None
