"""Writes files as benchmarks are released, and reads them back."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ral_system.benchmarks.item import BadItem, Item
from ral_system.benchmarks.reading import read_items

PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU"
    b"\x00\x00\x00\nIDATx\x9cc`\x00\x00\x00\x02\x00\x01H\xaf\xa4q\x00\x00\x00\x00IEND\xaeB`\x82"
)


def encoded(content: bytes = PNG, path: str | None = None) -> dict[str, Any]:
    """A picture as Hugging Face's datasets store it."""
    return {"bytes": content, "path": path}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


def touch(folder: Path, *names: str) -> None:
    """Media files; nobody opens them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)


def good(name: str, folder: Path) -> list[Item]:
    """The benchmark's items, which are all usable."""
    found = list(read_items(name, folder))
    assert not [one for one in found if isinstance(one, BadItem)], found
    return [one for one in found if isinstance(one, Item)]


def bad(name: str, folder: Path) -> dict[str, str]:
    """Reasons by the ids of the items that are not usable."""
    return {one.id: one.reason for one in read_items(name, folder) if isinstance(one, BadItem)}
