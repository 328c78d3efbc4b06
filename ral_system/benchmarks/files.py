"""Released files: rows to items, and paths, which have to stay below the benchmark's folder, or its links' targets."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from ral_system.benchmarks.item import BadItem, Item
from ral_system.data.sources.files import Row, path_below, read_rows
from ral_system.errors import DataError

Fields = Mapping[str, Any]
VIDEO_SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi")


def each(rows: Iterable[Row], name: str, build: Callable[[Fields], Item]) -> Iterator[Item | BadItem]:
    """One item per row; a row that has a problem, or makes `build` raise DataError, is a bad item `name:number`."""
    for row in rows:
        if row.fields is None:
            yield BadItem(f"{name}:{row.number}", row.problem)
        else:
            yield attempt(f"{name}:{row.number}", build, row.fields)


def attempt(id: str, build: Callable[[Fields], Item], fields: Any) -> Item | BadItem:
    """Build the item, or the bad item with the reason."""
    if not isinstance(fields, Mapping):
        return BadItem(id, f"not an object but {type(fields).__name__}")
    try:
        return build(fields)
    except DataError as error:
        return BadItem(id, str(error))


def shards(folder: Path, pattern: str) -> Iterator[Row]:
    """Rows of the files that match, in the order of their names, numbered through."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise DataError(f"{folder}: holds no {pattern}")
    number = 0
    for path in paths:
        for row in read_rows(path):
            yield Row(number, row.fields, row.problem)
            number += 1


def read_csv(path: Path) -> Iterator[Row]:
    """Rows of a table with a header. Raises DataError that names the file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, fields in enumerate(csv.DictReader(file, strict=True)):
                whole = None not in fields and None not in fields.values()
                yield Row(number, fields if whole else None, "" if whole else "not as many columns as the header has")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None


def read_object(path: Path) -> Fields:
    """A JSON file that is one object. Raises DataError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not an object but {type(value).__name__}")
    return value


def first_below(folder: Path, *names: str) -> Path:
    """The first of these files and folders that exists; the error is that of the first."""
    problem: DataError | None = None
    for name in names:
        try:
            return path_below(*_from_link(folder, name))
        except DataError as error:
            problem = problem or error
    raise problem or DataError("no name was given")


def _from_link(folder: Path, name: str) -> tuple[Path, str]:
    """A link that lies in the benchmark's folder is its user's, who may keep videos elsewhere: what the name has after
    it has to stay below where it leads.
    """
    first, *rest = PurePath(name).parts or ("",)
    try:
        linked = (folder / first).is_symlink()
    except (OSError, ValueError):  # no path at all
        linked = False
    return (folder / first, str(PurePath(*rest))) if linked else (folder, name)


def first_file(folder: Path, *names: str) -> Path:
    """Return the first of these that exists; it must be a file."""
    path = first_below(folder, *names)
    if not path.is_file():
        raise DataError(f"{path} is a folder")
    return path
