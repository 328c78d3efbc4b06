"""Rows of a file, in order, each with its number: JSON, JSON lines, parquet and Arrow.

A row that cannot be read is a row with a problem; a file that cannot be is an error. So rows and problems add up to
what the file holds.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ral_system.config.data import ColumnsConfig
from ral_system.errors import DataError

_ROWS_AT_ONCE = 64
_SHOWN_CHARS = 80
_MAX_LINE_BYTES = 64 * 2**20
_LOOKED_AT = 10_000
_SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow")
_MEDIA_SUFFIXES = {  # by the columns that name such files
    "videos": {".mp4", ".mkv", ".webm", ".avi", ".mov"},
    "images": {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"},
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in the file.

    Example: `Row(3, {"problem": "what is it ?", "answer": "a cat"})`
    """

    number: int
    """Row number in the file, from 0."""
    fields: Mapping[str, Any] | None
    problem: str = ""
    """Reason why there are no fields."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Rows and columns of files, before their rows are read one by one."""

    rows: int
    columns: frozenset[str]
    """Top-level columns that any row has."""


def path_below(root: Path, name: str) -> Path:
    """The file or folder of this name; it may not lead out of `root`, by dots or by links, but for those with which the
    cache of Hugging Face's hub keeps a dataset. Raises DataError.
    """
    shown = shortened(name)
    try:
        path = (root / name).resolve()
        inside = any(path.is_relative_to(home) for home in _homes(root.resolve()))
        exists = path.exists()
    except (OSError, ValueError, RuntimeError):  # a zero byte, a name that no file system takes, a loop of links
        raise DataError(f"{shown!r} is not a valid path") from None
    if not inside:
        raise DataError(f"{shown} leads out of {root.resolve()}")
    if not exists:
        raise DataError(f"{shown}: no such file below {root.resolve()}")
    return path


def _homes(root: Path) -> Iterator[Path]:
    """The folder, and of one in the hub's cache, `datasets--org--name/snapshots/<revision>`, what it links to."""
    yield root
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("datasets--"):
            yield folder.parents[1] / "blobs"


def shortened(name: str) -> str:
    """Shorten a name for messages."""
    return name if len(name) <= _SHOWN_CHARS else f"{name[:_SHOWN_CHARS]}…"


def files_of(
    path: Path,
    pattern: str | None = None,
    source: str = "data.sources.NAME",
    columns: ColumnsConfig | None = None,
) -> list[Path]:
    """The file itself; of a folder, those that match, in the order of their names, or else its Arrow shards, as Hugging
    Face's datasets save themselves.

    Raises DataError for a folder without any, for one with some of its shards alone, and for files that cannot hold
    rows. `source` is the field that messages send to, `columns` its own.
    """
    found = [path]
    if path.is_dir():
        found = sorted(file for file in path.glob(pattern or "data-*.arrow") if file.is_file())  # beside shards: caches
        if not found:
            raise DataError(f"{path}: {_without(path, pattern, source, columns)}")
        _check_complete(path, [str(file.relative_to(path)) for file in found])
    for file in found:
        if not file.is_file():
            raise DataError(f"{file}: no such file")
        if file.suffix not in _SUFFIXES:
            raise DataError(
                f"{file}: {file.suffix or 'no suffix'} is not one of {', '.join(_SUFFIXES)}; save it as JSON lines or "
                "parquet"
            )
    return found


def _without(folder: Path, pattern: str | None, source: str, columns: ColumnsConfig | None) -> str:
    """Say why a folder has no files of rows, and what to do."""
    if pattern is not None:
        return f"a folder without {pattern} files; correct {source}.files"
    if splits := sorted({file.parent.name for file in folder.glob("*/data-*.arrow")}):
        one = "train" if "train" in splits else splits[0]
        return f"holds splits {', '.join(splits)}; choose with {source}.files={one}/data-*.arrow"
    suffixes = {file.suffix.lower() for file in islice(folder.rglob("*"), _LOOKED_AT)}
    media = [name for name, known in _MEDIA_SUFFIXES.items() if suffixes & known]
    if media and not suffixes & set(_SUFFIXES):
        asked = f" with {_columns_of(media, source, columns)}" if columns else ""
        return f"holds {' and '.join(media)} and no rows; write rows.jsonl there{asked}, and set {source}.path to it"
    return f"a folder without data-*.arrow files; choose with {source}.files=, for example train-*.parquet"


def _columns_of(media: list[str], source: str, columns: ColumnsConfig) -> str:
    """Name the columns that rows about such media need, as this source calls them."""
    names = [columns.question, columns.answer]
    if columns.media_type is not None:
        media, names = ["images"], [*names, f"{columns.media_type} (image or video)"]
    fields = {field: getattr(columns, field) for field in media}
    names += [column or f"a column of paths, named as {source}.columns.{field}" for field, column in fields.items()]
    if columns.thought is not None:
        names.append(f"for sft {columns.thought}")
    return ", ".join(dict.fromkeys(names))


def read_rows(path: Path, columns: Collection[str] | None = None, pattern: str | None = None) -> Iterator[Row]:
    """The rows of `files_of` path and pattern, numbered through; a file's suffix says what it is. Of binary files only
    `columns` are decoded; None: all.

    Raises DataError that names the file: not there, unknown suffix, not what its suffix says.
    """
    number = 0
    for file in files_of(path, pattern):
        for row in _read_file(file, columns):
            yield Row(number, row.fields, row.problem)
            number += 1


def _read_file(path: Path, columns: Collection[str] | None) -> Iterator[Row]:
    readers = dict(zip(_SUFFIXES, (_json_lines, _json, _parquet, _arrow), strict=True))
    try:
        yield from readers[path.suffix](path, columns)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _check_complete(folder: Path, names: list[str]) -> None:
    """Raise DataError if shards that the file names count are missing."""
    for match in filter(None, map(re.compile(r"(.*-)\d{5}-of-(\d{5})(\.\w+)").fullmatch, names)):
        for number in range(int(match[2])):
            if (name := f"{match[1]}{number:05}-of-{match[2]}{match[3]}") not in names:
                raise DataError(f"{folder}: {name} is missing; copy the whole dataset")


def survey(path: Path, pattern: str | None = None) -> Survey:
    """Survey the rows that `read_rows` yields, without decoding where the format allows. Raises DataError like it."""
    found = [_survey(file) for file in files_of(path, pattern)]
    return Survey(sum(one.rows for one in found), frozenset().union(*(one.columns for one in found)))


def _survey(path: Path) -> Survey:
    if path.suffix == ".parquet":
        with _parquet_file(path) as file:
            return Survey(int(file.metadata.num_rows), frozenset(file.schema_arrow.names))
    if path.suffix == ".arrow":
        with _arrow_stream(path) as batches:
            return Survey(sum(batch.num_rows for batch in batches), frozenset(batches.schema.names))
    rows, names = 0, set[str]()
    for row in _read_file(path, None):
        rows += 1
        names.update(row.fields or ())
    return Survey(rows, frozenset(names))


def _json_lines(path: Path, columns: Collection[str] | None) -> Iterator[Row]:
    number = 0
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        while line := file.readline(_MAX_LINE_BYTES):
            if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := file.readline(_MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield Row(number, None, f"the line is longer than {_MAX_LINE_BYTES // 2**20} MiB")
            elif not line.strip():
                continue
            else:
                yield _parsed(number, line)
            number += 1


def _parsed(number: int, line: bytes) -> Row:
    try:
        return _checked(number, json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return Row(number, None, f"not UTF-8: byte {error.start} is {line[error.start]:#04x}")
    except (ValueError, RecursionError) as error:
        return Row(number, None, f"not JSON: {error}")


def _integer(digits: str) -> int | str:
    """Python reads no more than 4,300 digits; what has more is a text."""
    try:
        return int(digits)
    except ValueError:
        return digits


def _checked(number: int, value: Any) -> Row:
    if not isinstance(value, dict):
        return Row(number, None, f"not an object but {type(value).__name__}")
    return Row(number, value)


def _json(path: Path, columns: Collection[str] | None) -> Iterator[Row]:
    try:
        # Bytes that are not UTF-8 become lone surrogates, which cost the texts that hold them and no other.
        values = json.loads(path.read_text(encoding="utf-8-sig", errors="surrogateescape"), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); rows one per line belong in a file .jsonl") from None
    if not isinstance(values, list):
        raise DataError(f"{path}: not a list of rows but {type(values).__name__}")
    for number, value in enumerate(values):
        yield _checked(number, value)


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not parquet, or damaged ({' '.join(str(error).split())})") from None


def _parquet(path: Path, columns: Collection[str] | None) -> Iterator[Row]:
    with _parquet_file(path) as file:
        names = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
        yield from _decoded(file.iter_batches(_ROWS_AT_ONCE, columns=names))


@contextmanager
def _arrow_stream(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as batches:
            yield batches
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not an Arrow stream, or damaged ({' '.join(str(error).split())})") from None


def _arrow(path: Path, columns: Collection[str] | None) -> Iterator[Row]:
    with _arrow_stream(path) as batches:
        names = batches.schema.names if columns is None else [n for n in batches.schema.names if n in columns]
        yield from _decoded(batch.select(names) for batch in batches)


def _decoded(batches: Any) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            part = batch.slice(start, _ROWS_AT_ONCE)
            try:
                rows = [Row(number + i, fields) for i, fields in enumerate(part.to_pylist())]
            except (ValueError, OverflowError):  # a text that is not UTF-8, a date beyond the calendar
                rows = [_alone(number + i, part.slice(i, 1)) for i in range(part.num_rows)]
            yield from rows
            number += len(rows)


def _alone(number: int, row: Any) -> Row:
    try:
        return Row(number, row.to_pylist()[0])
    except UnicodeDecodeError as error:
        return Row(number, None, f"not UTF-8: byte {error.start} of a text is {error.object[error.start]:#04x}")
    except (ValueError, OverflowError) as error:
        return Row(number, None, f"cannot be decoded: {error}")
