"""Boxes of a user's file that say where an answer is to be seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ral_system.errors import DataError
from ral_system.types import Box, Media, Region

Unit = Literal["fraction", "pixel"]

_SHAPE = "{box: [left, top, right, bottom], unit: fraction or pixel}"


@dataclass(frozen=True, slots=True)
class StatedBox:
    """A box as a row states it, before the size of its medium is known.

    Example: `StatedBox("evidence[0]", (120, 40, 180, 90), "pixel", medium=0, seconds=None)`
    """

    name: str
    """Column and place in its list, for messages."""
    edges: Box
    """Left, top, right, bottom."""
    unit: Unit
    medium: int
    seconds: tuple[float, float] | None


def read_boxes(value: Any, column: str) -> tuple[StatedBox, ...]:
    """The boxes of a row's column; none where it is empty. Raises DataError that names the column."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{column}: not a list but {type(value).__name__}; write a list of {_SHAPE}")
    return tuple(_box(one, f"{column}[{at}]") for at, one in enumerate(value))


def to_regions(boxes: Sequence[StatedBox], media: Sequence[Media]) -> tuple[Region, ...]:
    """Boxes in fractions of `media`, which have their original size. Raises DataError that names the column."""
    return tuple(_region(box, media) for box in boxes)


def _box(value: Any, name: str) -> StatedBox:
    if not isinstance(value, Mapping):
        raise DataError(f"{name}: not an object but {type(value).__name__}; write {_SHAPE}")
    if unknown := [str(key) for key in value if key not in ("box", "unit", "medium", "seconds")]:
        raise DataError(f"{name}: has {unknown[0][:80]!r}, which is unknown; write {_SHAPE}, and medium or seconds")
    unit: Any = value.get("unit")
    if unit not in get_args(Unit):
        raise DataError(f"{name}: unit={str(unit)[:80]}: not fraction or pixel; say which")
    medium, seconds = value.get("medium"), value.get("seconds")
    medium = 0 if medium is None else medium
    if type(medium) is not int:
        raise DataError(f"{name}: medium={str(medium)[:80]}: not a whole number; count the row's media from 0 on")
    left, top, right, bottom = _numbers(value.get("box"), 4, f"{name}: box")
    times = None if seconds is None else _numbers(seconds, 2, f"{name}: seconds")
    return StatedBox(name, (left, top, right, bottom), unit, medium, None if times is None else (times[0], times[1]))


def _numbers(value: Any, count: int, name: str) -> list[float]:
    right = isinstance(value, list) and len(value) == count and all(type(one) in (int, float) for one in value)
    if not right or not all(math.isfinite(one) for one in value):
        raise DataError(f"{name}={str(value)[:80]}: not a list of {count} numbers")
    return [float(one) for one in value]


def _region(box: StatedBox, media: Sequence[Media]) -> Region:
    if not 0 <= box.medium < len(media):
        raise DataError(f"{box.name}: medium={box.medium}: the row has {len(media)} media, counted from 0")
    medium, edges = media[box.medium], box.edges
    if box.seconds is not None and medium.clip is None:
        raise DataError(f"{box.name}: seconds={list(box.seconds)}: a picture has none; remove them")
    if box.unit == "pixel":
        for edge, most in zip(edges, (medium.width_px, medium.height_px) * 2, strict=True):
            if not 0 <= edge <= most:
                size = f"{medium.width_px} × {medium.height_px} pixels"
                raise DataError(f"{box.name}: box={list(edges)}: {edge:g} is outside of the {medium.kind}'s {size}")
        left, top, right, bottom = edges
        edges = left / medium.width_px, top / medium.height_px, right / medium.width_px, bottom / medium.height_px
    try:
        return Region(*edges, box.medium, *(box.seconds or (None, None)))
    except ValueError as error:
        raise DataError(f"{box.name}: {error}") from None
