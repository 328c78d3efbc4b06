"""What a rank of an engine raised while it started. vLLM logs it there, and says in the engine's process only that a
rank failed.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER = "RAL_RANK_FAILURES"
"""Environment variable of the ranks: the folder where each leaves what it raised."""
_LOGGER = "vllm.v1.executor.multiproc_executor"
"""Logs a rank's exception, in the rank's process (vLLM 0.32)."""


@contextmanager
def rank_failures() -> Iterator[None]:
    """Raise RuntimeError with the first failure of a rank that starts in the block, in place of vLLM's exception."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_FOLDER] = folder
        try:
            yield
        except Exception as error:
            left = sorted(Path(folder).iterdir(), key=lambda file: file.stat().st_mtime_ns)
            if not left:
                raise
            raise RuntimeError(left[0].read_text()) from error
        finally:
            del os.environ[_FOLDER]


def leave_failures() -> None:
    """Leave what this rank's process raises from now on for `rank_failures`, if an engine starts it in that block."""
    if folder := os.environ.get(_FOLDER):
        logging.getLogger(_LOGGER).addHandler(_Leaving(Path(folder)))


class _Leaving(logging.Handler):
    def __init__(self, folder: Path) -> None:
        super().__init__(logging.ERROR)
        self._file = folder / str(os.getpid())

    def emit(self, record: logging.LogRecord) -> None:
        """Write the first exception, unless the engine has started and takes no more."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and self._file.parent.is_dir() and not self._file.exists():
            self._file.write_text(f"{type(error).__name__}: {error}")
