from xml.etree import ElementTree

import pytest

from ral_system.report.heatmap import heatmap

SVG = "{http://www.w3.org/2000/svg}"


def rows(svg: str) -> dict[str, tuple[float, str]]:
    """Title of each cell: its y and its colour."""
    found = {}
    for cell in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        title, rect = cell.find(f"{SVG}title"), cell.find(f"{SVG}rect")
        assert title is not None and title.text and rect is not None
        found[title.text] = float(rect.get("y", "nan")), rect.get("fill", "")
    return found


def test_a_cell_for_every_layer_and_head_with_the_last_layer_on_top() -> None:
    found = rows(heatmap([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "a < b", "note", (0, 1)))
    assert len(found) == 6
    assert found["layer 1, head 0: 4"][0] < found["layer 0, head 0: 1"][0]
    assert found["layer 0, head 0: 1"][1] == "#eef3fb" and found["layer 1, head 2: 6"][1] == "#143c86"


def test_wide_spans_are_logarithmic_and_equal_values_one_colour() -> None:
    found = rows(heatmap([[1.0, 100.0, 10000.0]], "t", "n", (0,)))
    middle = [int(found["layer 0, head 1: 100"][1][i : i + 2], 16) for i in (1, 3, 5)]
    assert middle == pytest.approx([129, 151.5, 192.5], abs=0.5)  # halfway from #eef3fb to #143c86
    assert "Logarithmic" in heatmap([[1.0, 1000.0]], "t", "n", (0,))
    assert "Logarithmic" not in heatmap([[0.0, 1000.0]], "t", "n", (0,))  # nothing to take a logarithm of
    assert len({colour for _, colour in rows(heatmap([[2.0, 2.0]], "t", "n", (0,))).values()}) == 1
