"""From a row of somebody's file to a question: which columns hold what, and what makes a row unusable.

`PRESETS` name the columns of formats that are common; dotted names reach into nested columns
(`reward_model.ground_truth`, `prompt.0.content`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ral_system.errors import DataError

IMAGE_MARK = "<image>"
"""Where a picture stands in a question's text; without marks pictures come before it."""
MAX_QUESTION_CHARS = 50_000

_SHOWN_CHARS = 80
_LARGEST = 1e300
_WRAPPED = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns that hold each part; None: there is none."""

    question: str
    answer: str
    images: str | None = None
    """A path, bytes, `{"bytes", "path"}` as Hugging Face's datasets store pictures, or a list of these."""
    kind: str | None = None
    options: str | None = None
    id: str | None = None


PRESETS: Mapping[str, Columns] = {
    "video_r1": Columns("problem", "solution", "path", kind="problem_type", options="options", id="problem_id"),
    "easyr1": Columns("problem", "answer", "images"),
    "verl": Columns("prompt.0.content", "reward_model.ground_truth", "images", kind="data_source"),
}


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture: its bytes, or a file that holds them."""

    encoded: bytes | None
    path: Path | None


@dataclass(frozen=True, slots=True)
class Question:
    """A usable row. `text` has as many marks as there are pictures, or none."""

    id: str | None
    kind: str
    text: str
    answer: str
    pictures: tuple[Picture, ...]


def read_question(fields: Mapping[str, Any], columns: Columns, root: Path) -> Question:
    """The row's question; pictures are named, not opened. Paths are below `root`.

    Raises DataError with a reason that names the column.
    """
    text = _text(_value(fields, columns.question), columns.question)
    if columns.options:
        text = "\n".join([text, *_options(_value(fields, columns.options, missing=None), columns.options)])
    if len(text) > MAX_QUESTION_CHARS:
        raise DataError(f"{columns.question}: {len(text):,} characters, at most {MAX_QUESTION_CHARS:,}")
    pictures = _pictures(fields, columns.images, root) if columns.images else ()
    marks = text.count(IMAGE_MARK)
    if marks not in (0, len(pictures)):
        raise DataError(f"{columns.question}: {marks} {IMAGE_MARK} for {len(pictures)} pictures")
    kind = _value(fields, columns.kind, missing="") if columns.kind else ""
    id = _value(fields, columns.id, missing=None) if columns.id else None
    return Question(
        id=None if id is None else str(id),
        kind=str(kind or ""),
        text=text,
        answer=_answer(_value(fields, columns.answer), columns.answer),
        pictures=pictures,
    )


_REQUIRED = object()


def _value(fields: Any, column: str, missing: Any = _REQUIRED) -> Any:
    """What a dotted name leads to."""
    found = fields
    for part in column.split("."):
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, Sequence) and not isinstance(found, str) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif missing is _REQUIRED:
            raise DataError(f"{column}: not in the row")
        else:
            return missing
    return found


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{column}: not text but {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{column}: empty")
    if "\x00" in value:
        raise DataError(f"{column}: holds a zero byte")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{column}: holds half a character (a lone surrogate)") from None
    return value.strip()


def _answer(value: Any, column: str) -> str:
    """Text without the tags that some formats put around it; a number as it is written."""
    if isinstance(value, bool) or value is None:
        raise DataError(f"{column}: not an answer but {value}")
    if isinstance(value, (int, float)):
        if abs(value) > _LARGEST or value != value:
            raise DataError(f"{column}: {'nan' if value != value else 'a number beyond 1e300'} is no answer")
        return repr(value)
    answer = _text(value, column)
    if (wrapped := _WRAPPED.fullmatch(answer)) is not None:
        answer = _text(wrapped[1], column)
    if any(tag in answer for tag in _TAGS):
        raise DataError(f"{column}: holds a tag of the response template, unbalanced or in the middle")
    return answer


def _options(value: Any, column: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(option, str) for option in value):
        raise DataError(f"{column}: not a list of texts")
    return [_text(option, column) for option in value]


def _pictures(fields: Mapping[str, Any], column: str, root: Path) -> tuple[Picture, ...]:
    value = _value(fields, column, missing=None)
    values = value if isinstance(value, list) else [] if value is None or value == "" else [value]
    return tuple(_picture(one, column, root) for one in values)


def _picture(value: Any, column: str, root: Path) -> Picture:
    if isinstance(value, Mapping):  # datasets' Image: bytes first, since its path may be somebody else's
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Picture(value, None)
    if not isinstance(value, str) or not value:
        raise DataError(f"{column}: neither a path nor bytes but {type(value).__name__}")
    shown = value if len(value) <= _SHOWN_CHARS else f"{value[:_SHOWN_CHARS]}…"
    if "://" in value:
        raise DataError(f"{column}: {shown} is an address; download it first")
    try:
        path = (root / value).resolve()
        inside, exists = path.is_relative_to(root.resolve()), path.is_file()
    except (OSError, ValueError, RuntimeError):  # a zero byte, a name that no file system takes, a loop of links
        raise DataError(f"{column}: {shown!r} is no path") from None
    if not inside:
        raise DataError(f"{column}: {shown} leads out of {root}")
    if not exists:
        raise DataError(f"{column}: {shown}: no such file below {root}")
    return Picture(None, path)
