"""Files that are broken as a whole, and columns that nobody asks for, for `test_bad_rows.py`."""

import json
from collections.abc import Callable

import pyarrow as pa
from pyarrow import parquet

from tests.unit.data.bad_texts import good


def whole(suffix: str, count: int = 3) -> bytes:
    """A file in order."""
    rows = [good(str(number)) for number in range(count)]
    if suffix == ".jsonl":
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    if suffix == ".json":
        return json.dumps(rows).encode()
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows), sink, compression="snappy")
    return bytes(sink.getvalue())


def damaged_pages() -> bytes:
    found = bytearray(whole(".parquet", 200))
    found[4 : len(found) // 3] = bytes(len(found) // 3 - 4)
    return bytes(found)


BROKEN_FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "half a parquet": ("a.parquet", lambda: whole(".parquet")[:-100], "not parquet, or damaged"),
    "a parquet with damaged pages": ("a.parquet", damaged_pages, "not parquet, or damaged"),
    "an empty parquet": ("a.parquet", lambda: b"", "not parquet, or damaged"),
    "a parquet that is JSON": ("a.parquet", lambda: whole(".json"), "not parquet, or damaged"),
    "a parquet without rows": ("a.parquet", lambda: whole(".parquet", 0), "no rows"),
    "an Arrow file that is a parquet": ("a.arrow", lambda: whole(".parquet"), "not an Arrow stream"),
    "an empty JSON": ("a.json", lambda: b"", "not JSON"),
    "an object instead of a list": ("a.json", lambda: b'{"rows": []}', "not a list of rows but dict"),
    "JSON lines in a .json": ("a.json", lambda: whole(".jsonl"), "not JSON .*; rows one per line belong in .*jsonl"),
    "half a JSON": ("a.json", lambda: whole(".json")[:-30], "not JSON"),
    "UTF-16": ("a.json", lambda: whole(".json").decode().encode("utf-16"), "not JSON"),
    "JSON too deep": ("a.json", lambda: b"[" * 200_000, "not JSON"),
    "a list without rows": ("a.json", lambda: b"[]", "no rows"),
    "an empty file of lines": ("a.jsonl", lambda: b"", "no rows"),
    "blank lines alone": ("a.jsonl", lambda: b"\n  \n", "no rows"),
    "an unknown suffix": ("a.csv", lambda: b"problem,answer\n", r"\.csv is not one of"),
    "compressed lines": ("a.jsonl.gz", lambda: b"\x1f\x8b", r"\.gz is not one of"),
    "no suffix": ("rows", lambda: whole(".jsonl"), "no suffix is not one of"),
}


def not_utf8(values: list[bytes]) -> pa.Array:
    """Texts that are declared to be UTF-8."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


EXTRA_COLUMNS: dict[str, pa.Array] = {
    "nanoseconds": pa.array([10**18 + 1] * 2, pa.timestamp("ns")),
    "times of day": pa.array([1, 2], pa.time64("ns")),
    "dates beyond the calendar": pa.array([0, 10**8], pa.date32()),
    "times beyond the calendar": pa.array([0, 10**14], pa.timestamp("s")),
    "long durations": pa.array([1, 2**62], pa.duration("s")),
    "an unheard of time zone": pa.array([1, 2], pa.timestamp("us", tz="Mars/Olympus")),
    "text that is not UTF-8": not_utf8([b"fine", b"\xff\xfe"]),
}
