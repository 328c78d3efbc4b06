"""The items of a benchmark, with the checks that all benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ral_system.benchmarks.item import BadItem, Benchmark, Item
from ral_system.errors import DataError
from ral_system.registry import BENCHMARKS


def read_items(name: str, folder: Path) -> Iterator[Item | BadItem]:
    """The benchmark's questions; one whose id came before is a bad item.

    Raises DataError for files that are missing, which names the field and says what the folder should hold.
    """
    benchmark: Benchmark = BENCHMARKS.get(name)
    seen: set[str] = set()
    try:
        for item in benchmark.items(folder):
            if isinstance(item, Item) and item.id in seen:
                yield BadItem(item.id, "another question has this id")
                continue
            seen.add(item.id)
            yield item
    except DataError as error:
        where = f"evaluation.benchmark.folder={folder}"
        raise DataError(f"{where}: {error}; the folder of {name} holds {benchmark.FILES}") from None
