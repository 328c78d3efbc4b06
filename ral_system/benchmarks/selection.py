"""Selection of a benchmark's questions: all, or equally many of every category up to a limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest

from ral_system.benchmarks.item import BadItem, Item


@dataclass(frozen=True, slots=True)
class Selection:
    """Chosen questions of a benchmark."""

    places: frozenset[int]
    """Indices among all questions in the released order, including bad ones."""
    available: int
    """Number of all questions."""

    def of(self, items: Iterable[Item | BadItem]) -> Iterator[Item | BadItem]:
        """Yield the selected items out of all items of the benchmark."""
        return (item for place, item in enumerate(items) if place in self.places)


def select(items: Iterable[Item | BadItem], limit: int | None) -> Selection:
    """`limit` of all questions, None: all: one of each category and part in turn, the first ones first. Questions that
    count together are chosen together, even if they are one more than `limit`.

    What cannot be read takes its turn in the category of the question before it, so it is not passed over.
    """
    available, category = 0, ("", "")
    categories: dict[tuple[str, str], dict[str, list[int]]] = {}
    for place, item in enumerate(items):
        available += 1
        together = f"{place}"
        if isinstance(item, Item):
            category, together = (item.category, item.part), item.together or together
        categories.setdefault(category, {}).setdefault(together, []).append(place)
    chosen: list[int] = []
    for unit in chain.from_iterable(zip_longest(*(units.values() for units in categories.values()), fillvalue=[])):
        if limit is not None and len(chosen) >= limit:
            break
        chosen += unit
    return Selection(frozenset(chosen), available)
