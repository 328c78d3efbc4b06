"""The forest plot: where intervals are, and which are clear of zero."""

from math import nan

from ral_system.report.forest import Interval, forest


def test_every_comparison_has_a_row_and_every_category_a_panel() -> None:
    panels = {
        "all": [Interval("a − b", 3.0, 1.0, 5.0), Interval("c − b", 0.5, nan, nan)],
        "far": [Interval("a − b", 0, -1, 1)],
    }
    drawn = forest("Differences", panels, band=2)
    assert drawn.count('class="point"') == 3 and drawn.count('class="interval"') == 2
    assert "a − b: +3.00 (+1.00 to +5.00)" in drawn and "c − b: +0.50</title>" in drawn
    assert drawn.count('class="s1"') == 1, "only an interval that leaves zero out stands out"
    assert drawn.count('class="band"') == drawn.count('class="zero"') == 2


def test_what_is_far_away_does_not_flatten_the_rest() -> None:
    near, far = Interval("a − b", 1.0, -1.0, 3.0), Interval("c − b", -45.0, -65.0, -25.0)
    drawn = forest("Differences", {"all": [near, far]}, band=2)
    assert "c − b: -45.00 (-65.00 to -25.00)" in drawn and "larger differences are at the edge" in drawn
    assert ">-50<" not in drawn and ">-4<" in drawn
    assert "at the edge" not in forest("Differences", {"all": [near]}, band=2)


def test_without_any_comparison_there_is_an_empty_chart() -> None:
    assert "Differences" in forest("Differences", {}, band=2)
