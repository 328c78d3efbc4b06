"""Which questions are asked with a limit."""

from collections.abc import Sequence

import pytest

from ral_system.benchmarks.item import BadItem, Item
from ral_system.benchmarks.selection import select


def item(id: str, category: str, part: str = "", together: str = "") -> Item:
    return Item(id, category, "?", (), ("A",), part=part, together=together)


def ids(items: Sequence[Item | BadItem], limit: int | None) -> list[str]:
    selection = select(items, limit)
    assert selection.available == len(items)
    return [one.id for one in selection.of(items)]


CATEGORIES = [
    item(f"{category}{n}", category) for category, count in (("a", 4), ("b", 1), ("c", 3)) for n in range(count)
]


@pytest.mark.parametrize(
    ("limit", "chosen"),
    [
        (None, ["a0", "a1", "a2", "a3", "b0", "c0", "c1", "c2"]),
        (1, ["a0"]),
        (3, ["a0", "b0", "c0"]),
        (5, ["a0", "a1", "b0", "c0", "c1"]),
        (6, ["a0", "a1", "a2", "b0", "c0", "c1"]),
        (99, ["a0", "a1", "a2", "a3", "b0", "c0", "c1", "c2"]),
    ],
)
def test_a_limit_takes_as_many_of_every_category(limit: int | None, chosen: list[str]) -> None:
    assert ids(CATEGORIES, limit) == chosen


def test_an_odd_limit_cuts_no_pair() -> None:
    pairs = [item(f"{c}/{n}/{h}", c, together=f"{c}/{n}") for c in "ab" for n in range(2) for h in range(2)]
    assert ids(pairs, 1) == ids(pairs, 2) == ["a/0/0", "a/0/1"]
    assert ids(pairs, 3) == ["a/0/0", "a/0/1", "b/0/0", "b/0/1"]


def test_parts_of_a_category_take_turns() -> None:
    settings = [item(f"{part}/{n}", "Art", part) for part in ("standard", "vision") for n in range(3)]
    assert ids(settings, 2) == ["standard/0", "vision/0"]


def test_what_cannot_be_read_is_not_passed_over() -> None:
    bad = BadItem("b?", "broken")
    assert ids([*CATEGORIES[:4], item("b0", "b"), bad, *CATEGORIES[5:]], 6) == ["a0", "a1", "b0", "b?", "c0", "c1"]
    assert ids([bad, *CATEGORIES], 3) == ["b?", "a0", "b0"]
