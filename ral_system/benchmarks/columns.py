"""Fields of a row by the name of their column. All raise DataError with a reason that names the column."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ral_system.benchmarks.files import Fields, first_file
from ral_system.benchmarks.item import MediaFile
from ral_system.errors import DataError


def text(fields: Fields, column: str) -> str:
    """Return a text that is not empty."""
    value = fields.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{column}: not text but {type(value).__name__}" if value else f"{column}: missing or empty")
    if "\x00" in value:
        raise DataError(f"{column}: holds a zero byte")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{column}: holds half a character (a lone surrogate)") from None
    return value.strip()


def identifier(fields: Fields, column: str) -> str:
    """Return a text or a whole number as text."""
    value = fields.get(column)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text(fields, column)


def texts(fields: Fields, column: str) -> tuple[str, ...]:
    """Return a list of texts or numbers as texts."""
    value = fields.get(column)
    if not isinstance(value, list) or not value or not all(isinstance(one, (str, int, float)) for one in value):
        raise DataError(f"{column}: not a list of texts")
    return tuple(str(one).strip() for one in value)


def picture(fields: Fields, column: str, folder: Path) -> MediaFile:
    """Return the picture of a column: a path, or `{"bytes", "path"}` as Hugging Face's datasets store pictures."""
    return _picture(fields.get(column), column, folder)


def pictures(fields: Fields, column: str, folder: Path) -> tuple[MediaFile, ...]:
    """Return the pictures of a column that holds a list."""
    value = fields.get(column)
    if not isinstance(value, list):
        raise DataError(f"{column}: not a list of pictures")
    return tuple(_picture(one, column, folder) for one in value)


def _picture(value: Any, column: str, folder: Path) -> MediaFile:
    if isinstance(value, Mapping):  # bytes first: the path may be from another machine
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return MediaFile("image", encoded=value)
    if not isinstance(value, str) or not value:
        raise DataError(f"{column}: neither a path nor bytes but {type(value).__name__}")
    try:
        return MediaFile("image", path=first_file(folder, value))
    except DataError as error:
        raise DataError(f"{column}: {error}") from None
