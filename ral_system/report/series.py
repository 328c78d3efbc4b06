"""Contents of a chart in the report: series over steps, their units, and the steps to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ral_system.report.load import Points
from ral_system.report.svg import short

Unit = Literal["number", "percent", "seconds", "nats", "GiB"]

MAX_STEPS = 1500
"""Largest number of steps drawn one by one; for longer runs only the extremes of neighbouring steps are drawn."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Confidence interval of a point, and its sample.

    Example: `Interval(0.87, 0.92, "500 questions")`
    """

    low: float
    high: float
    measured_on: str


@dataclass(frozen=True, slots=True)
class Series:
    """A line, or a layer of a stack. `colour` is the index of a colour of the page's palette."""

    key: str
    label: str
    points: Points
    colour: int
    intervals: Mapping[int, Interval] = field(default_factory=dict)
    """Error bar per step."""

    @property
    def known(self) -> list[float]:
        """Finite values in step order."""
        return [value for _, value in self.points if value is not None]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart to draw. `note` is one sentence on how to read it; `limit` a dashed line with its name."""

    id: str
    title: str
    note: str
    series: Sequence[Series]
    kind: Literal["line", "stack"] = "line"
    unit: Unit = "number"
    log: bool = False
    top: float | None = None
    limit: tuple[str, float] | None = None
    axis: str = "RL step"

    def summary(self, series: Series) -> str:
        """Return the number in the legend: the newest value of a line, the mean of a layer."""
        known = series.known
        return with_unit(known[-1] if self.kind == "line" else sum(known) / len(known), self.unit)


def steps_to_draw(series: Sequence[Series]) -> list[int]:
    """Return all steps, or the extremes of every series in each bucket, so no spike is lost."""
    steps = sorted({step for s in series for step, _ in s.points})
    if len(steps) <= MAX_STEPS:
        return steps
    buckets = max(1, MAX_STEPS // (2 * len(series)))
    keep = {steps[0], steps[-1]}
    for s in series:
        size = math.ceil(len(s.points) / buckets)
        for start in range(0, len(s.points), size):
            bucket = [(value, step) for step, value in s.points[start : start + size] if value is not None]
            if bucket:
                keep |= {min(bucket)[1], max(bucket)[1]}
    return sorted(keep)


def stacked(series: Sequence[Series], steps: Sequence[int]) -> list[dict[int, float]]:
    """Return the upper edge of each layer: its own value on top of the layers below."""
    height = dict.fromkeys(steps, 0.0)
    edges = []
    for s in series:
        values = dict(s.points)
        for step in steps:
            height[step] += values.get(step) or 0.0
        edges.append(dict(height))
    return edges


def on_axis(value: float, unit: Unit) -> str:
    """Format the number of a tick; only percent has its unit here."""
    return f"{value * 100:.3g}%" if unit == "percent" else short(value)


def with_unit(value: float | None, unit: Unit) -> str:
    """Format a value: `93.4%`, `0.12 nats`."""
    if value is None:
        return "n/a"
    if unit == "percent":
        return f"{value * 100:.1f}%"
    return short(value) + {"number": "", "seconds": " s", "nats": " nats", "GiB": " GiB"}[unit]


def described(series: Series, step: int, value: float | None, unit: Unit) -> str:
    """Format a value and its interval, if it has one."""
    interval = series.intervals.get(step)
    if interval is None:
        return with_unit(value, unit)
    low, high = (with_unit(end, unit) for end in (interval.low, interval.high))
    return f"{with_unit(value, unit)} ({low} to {high}, {interval.measured_on})"
