"""From scores of items to the figures of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ral_system.benchmarks.item import Item, Scored


def mean(values: Iterable[float]) -> float:
    """Return the mean. Raises ValueError for an empty list: a part without scores has no figure."""
    figures = list(values)
    if not figures:
        raise ValueError("nothing was scored")
    return sum(figures) / len(figures)


def percent(scores: Iterable[float]) -> float:
    """Return the mean in percent."""
    return 100 * mean(scores)


def by(key: Callable[[Item], str], scores: Scored) -> dict[str, float]:
    """Return percent for every value of the key, in the order of first occurrence."""
    parts: dict[str, list[float]] = {}
    for item, score in scores:
        parts.setdefault(key(item), []).append(score)
    if not parts:
        raise ValueError("nothing was scored")
    return {name: percent(values) for name, values in parts.items()}


def category(item: Item) -> str:
    """The key of the table's rows."""
    return item.category


def accuracy(scores: Scored) -> dict[str, float]:
    """Return percent over all items, then per category."""
    return {"score": percent(score for _, score in scores), **by(category, scores)}
