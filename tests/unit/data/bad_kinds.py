"""What a kind of row is, and how kinds become files. The kinds themselves are in the other `bad_` modules."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyarrow import parquet

from tests.unit.data.bad_files import RED, png


@dataclass(frozen=True, slots=True)
class Left:
    """Left out, and the quarantine says why."""

    cause: Literal["broken", "too_long", "duplicate"]
    reason: str
    """A regular expression that is somewhere in it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """How a picture or video reaches the model."""

    kind: Literal["image", "video"]
    width_px: int
    height_px: int
    corner: tuple[int, int, int]
    """Upper left, of the first frame."""
    frames: int = 1


PICTURE, CLIP = Seen("image", 84, 56, RED), Seen("video", 140, 112, RED, 4)


@dataclass(frozen=True, slots=True)
class Used:
    """Becomes a question with this answer and these media."""

    media: Sequence[Seen] = (PICTURE,)
    answer: str = "red"


@dataclass(frozen=True, slots=True)
class Nothing:
    """Marker for a line that is not a row at all."""


REMOVED = object()
"""In place of a column's value: the column is not there."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """`given` are changes of a good row, or make what stands in the file of it (bytes: as they are)."""

    name: str
    given: Row | Callable[[Row], Any]
    end: Left | Used | Nothing
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files to write below the data's root."""

    def built(self, good: Row) -> Any:
        if not isinstance(self.given, dict):
            return self.given(good)
        return {column: value for column, value in (good | self.given).items() if value is not REMOVED}


@dataclass(frozen=True, slots=True)
class Source:
    """A file with a row of every kind and good rows in between."""

    name: str
    suffix: str
    columns: str
    """Preset in conf/data/source/ that names the columns."""
    kinds: Sequence[Kind]
    good: Callable[[str], Row]
    """A good row, by its name; its picture is `good.png`, as a path or as bytes."""

    @property
    def file(self) -> str:
        return f"{self.name}{self.suffix}"

    def write(self, folder: Path) -> tuple[dict[str, str | None], dict[str, Row]]:
        """Ids of the kinds' rows by the kinds' names (None where there is no row), and good rows by id."""
        ids: dict[str, str | None] = {}
        good: dict[str, Row] = {}
        lines: list[Any] = []
        (folder / "good.png").write_bytes(png())
        number = 0
        for kind in self.kinds:
            for path, content in kind.files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            lines.append(kind.built(self.good(kind.name)))
            ids[kind.name] = None if isinstance(kind.end, Nothing) else f"{self.name}/{number}"
            number += ids[kind.name] is not None
            if number % 3 == 0:
                good[f"{self.name}/{number}"] = row = self.good(f"good {self.name} {number}")
                lines.append(row)
                number += 1
        _WRITERS[self.suffix](folder / self.file, lines)
        return ids, good


def line(value: Any) -> bytes:
    """Encode a value as a line of a JSON Lines file; bytes stay unchanged."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def _json_lines(path: Path, rows: list[Any]) -> None:
    path.write_bytes(b"\n".join(map(line, rows)))


def _json(path: Path, rows: list[Any]) -> None:
    path.write_text(json.dumps(rows))


MEDIA = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def _parquet(path: Path, rows: list[Any]) -> None:
    schema = pa.schema(
        {"problem": pa.string(), "answer": pa.string(), "images": MEDIA, "videos": MEDIA, "extra": pa.list_(pa.int64())}
    )
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=40)


_WRITERS = {".jsonl": _json_lines, ".json": _json, ".parquet": _parquet}
