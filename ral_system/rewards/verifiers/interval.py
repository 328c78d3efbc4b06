"""A time interval, by its overlap: temporal intersection over union."""

from __future__ import annotations

import math
import re

from ral_system.config.reward import JudgeConfig

_TIME = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)|(\d+(?:\.\d*)?|\.\d+)")

_BELOW_ZERO = re.compile(r"(?:\D*[^\w)\]])?[-\N{MINUS SIGN}]\.?\d")
"""A sign at the first time; any other dash stands between two."""


def score(given: str, reference: str, config: JudgeConfig) -> float:
    """IoU of two intervals: `3.5 to 10 s`, `[00:03, 00:10]`, `1:02:03-1:02:10`."""
    expected, found = read_interval(reference), read_interval(given)
    if expected is None:
        raise ValueError(f"the reference answer {reference!r} is not a time and a later one")
    if found is None:
        return 0.0
    shared = max(0.0, min(expected[1], found[1]) - max(expected[0], found[0]))
    return shared / (max(expected[1], found[1]) - min(expected[0], found[0])) if shared else 0.0


def read_interval(text: str) -> tuple[float, float] | None:
    """Two times in seconds, the first before the second; None for anything else."""
    times = [
        float(plain) if plain else 3600 * float(hours or 0) + 60 * float(minutes) + float(seconds)
        for hours, minutes, seconds, plain in _TIME.findall(text)
    ]
    if times and _BELOW_ZERO.match(text) is not None:
        times[0] = -times[0]
    if len(times) != 2 or not times[0] < times[1] or not math.isfinite(times[1]):
        return None
    return times[0], times[1]
