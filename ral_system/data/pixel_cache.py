"""Decoded pixels that all processes of a node share, within a budget: what was used longest ago leaves first."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

from ral_system.errors import SetupError

_LOCKS = 64
"""Items that share one of them wait for each other's decoding."""
_PATIENCE_S = 120.0
"""Bound on that wait; then an item is decoded twice."""


class PixelCache:
    """One file per item in a folder of this node, mapped into memory, so that processes share its pages, too.

    About `budget_bytes` of files at most; a larger item is not kept. Whoever asks first decodes, others wait.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self.folder, self._budget = folder, budget_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise SetupError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")

    def get(self, name: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The pixels called `name` (letters and digits); made by `decode` unless they are there. Do not modify them."""
        path = self.folder / f"{name}.npy"
        if (found := _opened(path)) is not None:
            return found
        with self._locked(f"{int(hashlib.sha256(name.encode()).hexdigest(), 16) % _LOCKS}"):
            if (found := _opened(path)) is not None:  # another process decoded it meanwhile
                return found
            pixels = decode()
            if pixels.nbytes <= self._budget:
                self._keep(path, pixels)
        return pixels

    def _keep(self, path: Path, pixels: np.ndarray) -> None:
        partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
        try:
            with self._locked("room"):
                self._make_room(pixels.nbytes)
            with partial.open("wb") as file:
                np.save(file, pixels, allow_pickle=False)
            partial.replace(path)
        except OSError as error:  # no room on the disk: a cache is not worth a run
            print(f"warning: {self.folder} takes no more pixels ({error.strerror}); decoding goes on", file=sys.stderr)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _make_room(self, needed: int) -> None:
        found = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                if entry.name.endswith((".npy", ".partial")):  # a partial one may be what a killed process left
                    status = entry.stat()
                    found.append((status.st_mtime_ns, status.st_size, entry.path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used + needed <= self._budget:
                return
            Path(path).unlink(missing_ok=True)  # whoever has it mapped keeps it
            used -= size

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self.folder / f".lock-{name}").open("w") as lock:
            deadline = time.monotonic() + _PATIENCE_S
            while not _locks(lock):
                if time.monotonic() > deadline:
                    print(f"warning: {lock.name} is held for {_PATIENCE_S:g} s; going on without", file=sys.stderr)
                    break
                time.sleep(0.01)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)


def _locks(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def node_folder() -> Path:
    """Where this user's processes on this node keep pixels, of whatever store: their names say what they are."""
    return Path(tempfile.gettempdir()) / f"ral-pixels-{os.getuid()}"


def _opened(path: Path) -> np.ndarray | None:
    try:
        pixels: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        os.utime(path)
    except FileNotFoundError:
        return None
    except (ValueError, OSError, EOFError):  # half a file, after a power cut
        path.unlink(missing_ok=True)
        return None
    return pixels
