"""Files of rows, in every format, and every way in which they can be broken."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from ral_system.data.sources.files import read_rows
from ral_system.errors import DataError

ROWS: list[dict[str, Any]] = [{"problem": f"what is {i} ?", "answer": str(i), "nested": {"a": [i]}} for i in range(150)]
ENCODED = [row | {"image": {"bytes": bytes([i]), "path": None}} for i, row in enumerate(ROWS)]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "rows.jsonl").write_text("\n\n".join(map(json.dumps, ROWS)) + "\n")
    for name in ("rows.json", "rows.jsonl"):
        found = list(read_rows(tmp_path / name))
        assert [row.fields for row in found] == ROWS and [row.number for row in found] == list(range(150))


def test_binary_formats_keep_bytes(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ENCODED)
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=40)
    folder = tmp_path / "saved"
    folder.mkdir()
    for shard, part in enumerate((table.slice(0, 100), table.slice(100))):
        path = str(folder / f"data-{shard:05}-of-00002.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(part)
    for path in (tmp_path / "rows.parquet", folder):
        found = list(read_rows(path))
        assert [row.fields for row in found] == ENCODED and [row.number for row in found] == list(range(150))


def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path: Path) -> None:
    for name, content in (("rows.jsonl", b'{"a": 1}\n{"a": 2}'), ("rows.json", b'[{"a": 1}, {"a": 2}]')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
        assert [row.fields for row in read_rows(tmp_path / name)] == [{"a": 1}, {"a": 2}]


def test_bad_lines_are_rows_with_a_problem(tmp_path: Path) -> None:
    lines = [b'{"a": 1}', b'{"a": 1', b"[1, 2]", b'{"a": "\xff"}', b'"text"', b"[" * 100_000, b'{"a": 2}']
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    found = list(read_rows(tmp_path / "rows.jsonl"))
    assert [row.number for row in found] == list(range(7))
    assert [row.fields for row in found] == [{"a": 1}, None, None, None, None, None, {"a": 2}]
    for row, says in zip(found[1:6], ("not JSON", "but list", "byte 7 is 0xff", "but str", "not JSON"), strict=True):
        assert says in row.problem


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.json", b"{", r"not JSON \(.*\); rows one per line belong in a file .jsonl"),
        ("rows.json", b'{"a": 1}', "not a list of rows but dict"),
        ("rows.json", b"\xff\xfe", "not JSON"),
        ("rows.parquet", b"PAR1 but not really", "not parquet, or damaged"),
        ("rows.arrow", b"no stream", "not an Arrow stream, or damaged"),
        ("rows.csv", b"a,b\n", r"\.csv is not one of"),
        ("missing.json", None, "no such file"),
        ("folder", None, "a folder without"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        list(read_rows(tmp_path / name))
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
