from itertools import pairwise
from xml.etree import ElementTree

import pytest

from ral_system.report.scatter import Point, scatter

SVG = "{http://www.w3.org/2000/svg}"


def drawn(points: list[Point]) -> dict[str, tuple[float, float, float]]:
    """Name: x and y of the point, y of its name."""
    found = {}
    for group in ElementTree.fromstring(scatter(points, "a < b", "x", "y")).iter(f"{SVG}g"):
        circle, text = group.find(f"{SVG}circle"), group.find(f"{SVG}text")
        assert circle is not None and text is not None and text.text
        found[text.text] = (float(circle.get("cx", "")), float(circle.get("cy", "")), float(text.get("y", "")))
    return found


def test_larger_is_to_the_right_and_above() -> None:
    found = drawn([Point(1, 0.2, "a"), Point(2, 0.8, "b"), Point(3, 0.5, "c<")])
    assert found["a"][0] < found["b"][0] < found["c<"][0]
    assert found["a"][1] > found["c<"][1] > found["b"][1]


def test_wide_spans_are_logarithmic() -> None:
    found = drawn([Point(1, 0.1, "a"), Point(100, 0.5, "b"), Point(10000, 0.9, "c")])
    assert found["b"][0] - found["a"][0] == pytest.approx(found["c"][0] - found["b"][0], abs=0.2)
    assert "logarithmic" in scatter([Point(1, 0, "a"), Point(1000, 1, "b")], "t", "x", "y")
    assert "logarithmic" not in scatter([Point(0, 0, "a"), Point(1000, 1, "b")], "t", "x", "y")


def test_names_of_crowded_points_stand_below_one_another() -> None:
    found = drawn([Point(1, 0.9 + i / 1000, f"p{i}") for i in range(6)] + [Point(1, 0.0, "low")])
    names = sorted(y for _, _, y in found.values())
    assert min(b - a for a, b in pairwise(names)) >= 12


def test_one_point_stands_in_the_middle() -> None:
    ((x, y, _),) = drawn([Point(5, 5, "only")]).values()
    assert 200 < x < 440 and 150 < y < 270
