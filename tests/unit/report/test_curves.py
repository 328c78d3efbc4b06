"""Small multiples of training curves: what is drawn where."""

import re
from xml.etree import ElementTree

from ral_system.report.curves import CurveRow, curves


def paths(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    found = re.findall(rf'<path class="line {kind}" d="M([^"]+)"', svg)
    return [[(float(x), float(y)) for x, y in (p.split() for p in path.split("L"))] for path in found]


def test_runs_are_thin_and_their_mean_is_bold() -> None:
    rows = [CurveRow("accuracy", {"clip": [[(0, 0.0), (10, 1.0)], [(0, 0.5), (10, 0.5), (20, 1.0)]], "gspo": []})]
    svg = curves("Losses < others", rows)
    ElementTree.fromstring(svg)
    assert "Losses &lt; others" in svg and ">clip<" in svg and ">gspo<" not in svg  # which has no value
    thin, (mean,) = paths(svg, "thin"), paths(svg, "ink")
    assert [len(path) for path in thin] == [2, 3]
    assert [x for x, _ in mean] == [64, 154, 244]  # steps 0, 10 and 20 of a panel that is 180 wide
    bottom, top = 76 + 130, 76
    assert [y for _, y in thin[0]] == [bottom, top]
    assert [y for _, y in mean] == [bottom - 0.25 * 130, bottom - 0.75 * 130, top]


def test_panels_share_steps_and_those_of_a_row_values() -> None:
    rows = [CurveRow("reward", {"a": [[(0, 0.0), (4, 2.0)]], "b": [[(2, 1.0)]]}), CurveRow("kl", {"a": [[(2, 7.0)]]})]
    svg = curves("", rows)
    first, second, third = paths(svg, "thin")
    assert third == [(64 + 90, 76 + 130 + 26 + 65)]  # in the middle of its steps; of its values there is one
    assert second[0][0] - 180 - 16 == sum(x for x, _ in first) / 2 and second[0][1] == sum(y for _, y in first) / 2
    assert not paths(svg, "ink")  # a single run is its own mean


def test_more_than_six_groups_go_on_below() -> None:
    groups = {f"arm{i}": [[(0, 0.0), (4, float(i))]] for i in range(8)}
    svg = curves("", [CurveRow("reward", groups), CurveRow("kl", groups)])
    thin = paths(svg, "thin")
    assert len(thin) == 16 and svg.count(">reward<") == svg.count(">kl<") == 2
    (x, y), (below_x, below_y) = thin[1][1], thin[13][1]  # of reward: the second group, and the eighth
    assert below_x == x and below_y > y
    shift = thin[12][0][1] - thin[0][0][1]  # a block: two rows and what lies between
    assert shift == 2 * 156 - 26 + 72


def test_what_is_not_finite_or_not_there_is_left_out() -> None:
    svg = curves(
        "", [CurveRow("loss", {"a": [[(0, float("nan"))]]}), CurveRow("kl", {"a": [[(0, 1.0), (1, float("inf"))]]})]
    )
    assert svg.count("not measured") == 1
    assert [len(path) for path in paths(svg, "thin")] == [1]
    ElementTree.fromstring(curves("nothing", []))


def test_what_the_steps_count_is_written_below() -> None:
    rows = [CurveRow("excess", {"a": [[(1, 0.5), (16, 0.1)]]})]
    assert ">step<" in curves("", rows)
    assert ">layers<" in curves("", rows, "layers") and ">step<" not in curves("", rows, "layers")
