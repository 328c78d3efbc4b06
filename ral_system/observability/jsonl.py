"""Append-only files of one JSON object per line that survive a kill at any byte and can be rolled back on resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ral_system.config.choices import STAGES, Stage


class JsonLines:
    """One file. A line has left the process when `append` returns; a torn last line is dropped on opening."""

    lines: int
    """Records in the file."""
    last: dict[str, Any] | None
    """The newest of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_tail(path)
        self._keep(read_lines(path))
        self._file = path.open("a", encoding="utf-8")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one object. Non-finite numbers become null."""
        self._file.write(dump(record) + "\n")
        self._file.flush()
        self.lines += 1
        self.last = dict(record)

    def replace_last(self, record: Mapping[str, Any]) -> None:
        """Replace the last object, which must exist."""
        assert self.last is not None
        self._rewrite([*read_lines(self.path)[:-1], dict(record)])

    def truncate(self, stage: Stage, step: int, lines: int | None = None) -> list[dict[str, Any]]:
        """Forget what a resumed run does again: `stage` beyond `step`, and every later stage. Returns what is kept.

        `lines` is what the file held at the checkpoint: of `step` itself, what was written after it is forgotten too.
        """
        last = STAGES.index(stage)
        kept = [
            record
            for record in read_lines(self.path)[:lines]
            if (at := STAGES.index(record["stage"])) < last or (at == last and record["step"] <= step)
        ]
        self._rewrite(kept)
        return kept

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    def _rewrite(self, records: list[dict[str, Any]]) -> None:
        self._file.close()
        write_atomically(self.path, "".join(dump(record) + "\n" for record in records))
        self._file = self.path.open("a", encoding="utf-8")
        self._keep(records)

    def _keep(self, records: list[dict[str, Any]]) -> None:
        self.lines, self.last = len(records), records[-1] if records else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every complete record of a stage; none when there is no file."""
    return [record for record in read_objects(path) if record.get("stage") in STAGES]


def read_objects(path: Path) -> list[dict[str, Any]]:
    """Every complete object; none when there is no file. A line cut short by a kill is skipped, wherever it is."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [record for line in lines if isinstance(record := _parse(line), dict)]


def dump(record: Mapping[str, Any]) -> str:
    """Strict JSON on one line: NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(record), allow_nan=False, ensure_ascii=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` in one step, so a reader sees the old or the new text and never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _drop_torn_tail(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        complete = content.rfind(b"\n") + 1
        if complete != len(content):
            file.truncate(complete)
