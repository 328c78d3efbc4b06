"""Every value is drawn inside the file's frame, however awkward the values are."""

import re
from xml.etree import ElementTree

import pytest

from ral_system.report.curves import CurveRow, curves
from ral_system.report.dots import Panel, dots
from ral_system.report.scatter import Point, scatter
from ral_system.report.sweep_chart import SweepPoint, sweep_chart

SVG = "{http://www.w3.org/2000/svg}"
AWKWARD = [[0.0], [5.0, 5.0], [-1.0, 1.0], [1e-9, 2e-9], [1e7, 3e9], [-3.0, -2.0], [1e-300, 1e300], [0.0, 0.3, 1e-7]]


def numbers(element: ElementTree.Element, *names: str) -> list[float]:
    return [float(element.get(name, "nan")) for name in names]


def pixels(root: ElementTree.Element) -> list[tuple[float, float]]:
    """Centres of the circles; in a file without any, the points of the lines."""
    circles = [(x, y) for x, y in (numbers(circle, "cx", "cy") for circle in root.iter(f"{SVG}circle"))]
    drawn = "".join(path.get("d", "") for path in root.iter(f"{SVG}path"))
    return circles or [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", drawn)]


@pytest.mark.parametrize("values", AWKWARD)
@pytest.mark.parametrize("kind", ["curves", "dots", "scatter", "sweep"])
def test_every_value_is_inside_the_frame(kind: str, values: list[float]) -> None:
    numbered = list(enumerate(values, 1))
    file = {
        "curves": lambda: curves("t", [CurveRow("m", {"a": [numbered]})]),
        "dots": lambda: dots("t", [Panel("m", {"a": values})]),
        "scatter": lambda: scatter([Point(i, value, f"p{i}") for i, value in numbered], "t", "x", "y"),
        "sweep": lambda: sweep_chart("t", "x", "y", {"a": [SweepPoint(i, v, v, v) for i, v in numbered]}),
    }[kind]()
    root = ElementTree.fromstring(file)
    (left, right), *_ = (numbers(line, "x1", "x2") for line in root.iter(f"{SVG}line"))  # the grid's
    found, height = pixels(root), float(root.get("height", "nan"))
    assert len(found) == len(values)
    assert all(left <= x <= right and 50 <= y <= height - 36 for x, y in found)  # below the title, above the numbers
