"""A bounding box, by its overlap: intersection over union."""

from __future__ import annotations

from ral_system.config.reward import JudgeConfig
from ral_system.rewards.verifiers.numbers import read_numbers

Box = tuple[float, float, float, float]


def score(given: str, reference: str, config: JudgeConfig) -> float:
    """IoU of two boxes [x1, y1, x2, y2], whatever brackets they are written with."""
    expected, found = read_box(reference), read_box(given)
    if expected is None:
        raise ValueError(f"the reference answer {reference!r} is not a box [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
    if found is None:
        return 0.0
    width, height = (min(expected[i + 2], found[i + 2]) - max(expected[i], found[i]) for i in (0, 1))
    shared = max(0.0, width) * max(0.0, height)
    return shared / (_area(expected) + _area(found) - shared)


def read_box(text: str) -> Box | None:
    """Four numbers that make a box with an inside; else None."""
    numbers = read_numbers(text, 4)
    if numbers is None or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        return None
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
