"""The parts that all charts share: axes, ticks, numbers, text, colours."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral_system.report import svg

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.331, 0.89, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.2, 0.2, [0.1, 0.15, 0.2, 0.25, 0.3]),
        (-1, -1, [-1.6, -1.4, -1.2, -1, -0.8, -0.6, -0.4]),
        (1200, 1900, [1200, 1400, 1600, 1800, 2000]),
        (0, 0.6, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),  # 0.6 / 6 falls short of 0.1
        (-0.0001, 0.6, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),  # a hair below zero is not worth an interval
    ],
)
def test_ticks_are_round_and_around_all_values(low: float, high: float, ticks: list[float]) -> None:
    assert svg.linear_axis(low, high, 0, 100, 6).ticks == pytest.approx(ticks)


FINITE = st.floats(-1e300, 1e300)


@given(FINITE, FINITE, st.integers(3, 8))
def test_a_linear_axis_holds_its_values_and_a_few_ticks(a: float, b: float, intervals: int) -> None:
    low, high = sorted((a, b))
    axis = svg.linear_axis(low, high, 300, 20, intervals)
    assert axis.low <= low <= high <= axis.high
    assert 1 <= len(axis.ticks) <= intervals + 3
    assert all(20 <= axis.px(value) <= 300 for value in (low, high, *axis.ticks))


def test_shares_of_ten_questions_have_ticks() -> None:
    """Their ends are tenths, whose differences floating point rounds to either side."""
    for low, high in itertools.combinations([n / 10 for n in range(11)], 2):
        axis = svg.linear_axis(low, high, 0, 100, 6)
        assert 3 <= len(axis.ticks) <= 9 and axis.low <= low and axis.high >= high


@given(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300))
def test_a_logarithmic_axis_holds_its_values_and_has_powers_of_ten(a: float, b: float) -> None:
    low, high = sorted((a, b))
    axis = svg.log_axis(low, high, 0, 100)
    assert axis.low <= low * (1 + 1e-6) and axis.high >= high * (1 - 1e-6)
    assert 2 <= len(axis.ticks) <= 6
    assert all(svg.scientific(tick).startswith("1e") for tick in axis.ticks)


def test_values_are_placed_by_their_distance_or_ratio() -> None:
    linear, log = svg.Axis(0, 4, 100, 200), svg.Axis(1, 100, 50, 250, log=True)
    assert [linear.px(value) for value in (0, 1, 4, 9, -2)] == [100, 125, 200, 200, 100]  # beyond an end at the end
    assert [log.px(value) for value in (1, 10, 100, 0)] == [50, 150, 250, 50]
    assert svg.Axis(7, 7, 0, 10).px(7) == 5


def test_positive_values_of_a_wide_span_have_a_logarithmic_axis() -> None:
    assert svg.axis_around([1, 1000], 0, 1).log
    assert not svg.axis_around([1, 100], 0, 1).log
    assert not svg.axis_around([0, 1000], 0, 1).log


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0"),
        (0.025, "0.025"),
        (0.30000000000000004, "0.3"),
        (1500.0, "1,500"),
        (2.4e-7, "2.4e-7"),
        (100_000.0, "1e5"),
        (-0.0001, "-1e-4"),
    ],
)
def test_numbers_are_short(value: float, written: str) -> None:
    assert svg.short(value) == written


def test_a_line_has_gaps_and_a_lone_point_is_kept() -> None:
    assert svg.line([(0, 1), (1.005, 2), None, (3, 4)]) == '<path class="line" d="M0 1L1 2M3 4"/>'


def test_text_and_attributes_are_escaped() -> None:
    hostile = "\"><script>&'"
    root = ElementTree.fromstring(
        svg.document(
            10, 10, hostile, [svg.text(0, 0, hostile), svg.with_tooltip(hostile, svg.line([], data_key=hostile))]
        )
    )
    assert root.get("aria-label") == hostile
    assert [t.text for t in root.iter(f"{SVG}text")] == [hostile, hostile]
    assert [t.text for t in root.iter(f"{SVG}title")] == [hostile]
    assert [p.get("data-key") for p in root.iter(f"{SVG}path")] == [hostile]


def test_a_file_has_its_colours_in_it_in_light_and_in_dark() -> None:
    file = svg.document(10, 10, "title", [])
    light, dark = file.split("<style>")[1].split("</style>")[0].split("@media (prefers-color-scheme:dark)")
    for name in ("s0", "s7", "ink", "card"):
        assert svg.PALETTE[name][0] in light and svg.PALETTE[name][1] in dark
    assert "var(" not in file


def test_every_colour_of_the_style_is_a_variable_of_the_page() -> None:
    asked = set(re.findall(r"var\(--([\w-]+)\)", svg.STYLE))
    assert asked <= svg.PALETTE.keys() and all(f"--{name}:" in svg.variables() for name in asked)


def test_a_file_is_as_wide_as_its_title_and_note() -> None:
    narrow, title, note = (svg.document(10, 10, t, [], n) for t, n in (("t", ""), ("t" * 90, ""), ("t", "n" * 90)))
    widths = [float(ElementTree.fromstring(file).get("width", "nan")) for file in (narrow, title, note)]
    assert widths[0] < 60 and widths[1] > 700 and widths[2] > 500


def test_one_step_is_named_once() -> None:
    assert re.findall(">([^<]+)</text>", svg.steps_below(svg.Axis(3, 3, 0, 10), 0, "step")) == ["step 3"]
    many = svg.steps_below(svg.Axis(0, 1500, 0, 10), 0, "step")
    assert re.findall(">([^<]+)</text>", many) == ["0", "step", "1,500"]


def test_nothing_but_the_standard_library_is_needed() -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-S", "-c", "import ral_system.report.svg"]  # -S: without site-packages
    subprocess.run(command, cwd=root, check=True, capture_output=True)
