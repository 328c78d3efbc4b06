from xml.etree import ElementTree

import pytest

from ral_system.report.dots import Panel, dots

SVG = "{http://www.w3.org/2000/svg}"


def circles(panels: list[Panel]) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(dots("a < b", panels))
    return [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter(f"{SVG}circle")]


def test_every_run_is_a_dot_in_its_group_s_column_and_larger_is_above() -> None:
    found = circles([Panel("accuracy", {"a": [0.1, 0.5], "b": [0.9]})])
    (x1, y1), (x2, y2), (x3, y3) = found
    assert x1 < x2 < x3 and y1 > y2 > y3
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)


def test_panels_stand_side_by_side_with_axes_of_their_own() -> None:
    first, second = circles([Panel("one", {"a": [1.0]}), Panel("two", {"a": [1000.0]})])
    assert second[0] > first[0] + 100 and first[1] == second[1]


def test_means_are_named_and_a_group_without_runs_has_none() -> None:
    svg = dots("t", [Panel("accuracy", {"a": [0.25, 0.75], "none": []})])
    assert "a: mean 0.5 of 2" in svg and "none: mean" not in svg
    assert ">none</text>" in svg


def test_what_was_not_measured_is_said() -> None:
    assert "not measured" in dots("t", [Panel("score", {"a": []})])


def test_wide_spans_are_logarithmic() -> None:
    (_, low), (_, middle), (_, high) = circles([Panel("score", {"a": [1.0, 100.0, 10000.0]})])
    assert low - middle == pytest.approx(middle - high, abs=0.2)
    assert "score, logarithmic" in dots("t", [Panel("score", {"a": [1.0, 1000.0]})])
    assert "logarithmic" not in dots("t", [Panel("score", {"a": [0.0, 1000.0]})])


def test_what_is_not_finite_is_left_out() -> None:
    svg = dots("t", [Panel("score", {"a": [1.0, float("inf")], "b": [2.0, float("nan")]})])
    assert svg.count("<circle") == 2 and "nan" not in svg and "inf" not in svg
