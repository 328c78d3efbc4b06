"""Boxes in a user's file: fractions or pixels, never guessed."""

from typing import Any

import pytest

from ral_system.data.sources.evidence import read_boxes, to_regions
from ral_system.errors import DataError
from ral_system.types import Clip, Media, Region, VideoSampling

PICTURE = Media("a", 200, 100)
VIDEO = Media("b", 64, 64, Clip(VideoSampling(1, 4, 2), (0.0, 1.0), 4.0))
HALF = {"box": [0, 0, 0.5, 1], "unit": "fraction"}


def read(value: Any) -> tuple[Region, ...]:
    return to_regions(read_boxes(value, "evidence"), (PICTURE, VIDEO))


def test_fractions_and_pixels() -> None:
    found = read([HALF, {"box": [20, 10, 100, 100], "unit": "pixel"}])
    assert found == (Region(0, 0, 0.5, 1), Region(0.1, 0.1, 0.5, 1.0))
    assert read(None) == read([]) == ()


def test_a_box_of_another_medium_and_time() -> None:
    """Fields without a value, as parquet fills them in, say nothing."""
    timed = {"box": [0, 32, 64, 64], "unit": "pixel", "medium": 1, "seconds": [1, 2.5]}
    assert read([timed, HALF | {"medium": None, "seconds": None}]) == (
        Region(0, 0.5, 1, 1, medium=1, start_s=1.0, end_s=2.5),
        Region(0, 0, 0.5, 1),
    )


BAD: dict[str, tuple[Any, str]] = {
    "an object": (HALF, r"evidence: not a list but dict; write a list of \{box:"),
    "bare numbers": ([0, 0, 1, 1], r"evidence\[0\]: not an object but int; write \{box:"),
    "a bare box": ([[0, 0, 1, 1]], r"evidence\[0\]: not an object but list"),
    "no unit": ([HALF, {"box": [0, 0, 1, 1]}], r"evidence\[1\]: unit=None: not fraction or pixel; say which"),
    "another unit": ([HALF | {"unit": "percent"}], r"evidence\[0\]: unit=percent: not fraction or pixel"),
    "an unknown field": ([HALF | {"label": "cat"}], r"evidence\[0\]: has 'label', which is unknown"),
    "three numbers": ([HALF | {"box": [0, 0, 1]}], r"evidence\[0\]: box=\[0, 0, 1\]: not a list of 4 numbers"),
    "a text for a number": ([HALF | {"box": [0, 0, 1, "1"]}], r"not a list of 4 numbers"),
    "infinity": ([HALF | {"box": [0, 0, 1, float("inf")]}], r"not a list of 4 numbers"),
    "a bool for a number": ([HALF | {"box": [0, 0, 1, True]}], r"not a list of 4 numbers"),
    "a fraction above 1": ([HALF | {"box": [0, 0, 1.002, 1]}], r"evidence\[0\]: right=1.002: not in \[0, 1\]"),
    "pixels as fractions": ([HALF | {"box": [20, 10, 100, 100]}], r"evidence\[0\]: left=20.0: not in \[0, 1\]"),
    "a pixel outside": (
        [{"box": [0, 0, 201, 100], "unit": "pixel"}],
        r"evidence\[0\]: box=\[0.0, 0.0, 201.0, 100.0\]: 201 is outside of the image's 200 × 100 pixels",
    ),
    "an empty box": ([HALF | {"box": [0.5, 0, 0.5, 1]}], r"evidence\[0\]: right=0.5: not above left=0.5"),
    "a medium that is not there": ([HALF | {"medium": 2}], r"evidence\[0\]: medium=2: the row has 2 media"),
    "a medium by its name": ([HALF | {"medium": "a.png"}], r"evidence\[0\]: medium=a.png: not a whole number"),
    "seconds of a picture": ([HALF | {"seconds": [0, 1]}], r"evidence\[0\]: seconds=\[0.0, 1.0\]: a picture has none"),
    "one second": ([HALF | {"medium": 1, "seconds": [1]}], r"evidence\[0\]: seconds=\[1\]: not a list of 2 numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_shapes_are_refused_in_one_line(name: str) -> None:
    given, says = BAD[name]
    with pytest.raises(DataError, match=f"^{says}" if says.startswith("evidence") else says) as error:
        read(given)
    assert "\n" not in str(error.value)
