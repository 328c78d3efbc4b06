"""Cache of decoded pixels for all processes of a node, within a budget; the least recently used leave first."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

from ral_system.errors import SetupError

_LOCKS = 64
"""Number of locks; items that share one wait for each other's decoding."""
_PATIENCE_S = 120.0
"""Bound on that wait; then an item is decoded twice."""
_COUNT_FILE = ".used"
"""File with the bytes of all items, including unfinished ones; if it is missing, the folder is listed."""
_KEPT = 0.9
"""Share of the budget that an eviction leaves, so the folder is listed once for every tenth of it written."""
_HEADER_BYTES = 128
"""Bytes before the pixels in an item's file."""


class PixelCache:
    """One file per item in a folder of this node, mapped into memory, so processes also share its pages.

    `budget_bytes` of files at most, those under way included; a larger item is not kept. The first process that
    asks decodes, others wait.
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
            size = pixels.nbytes + _HEADER_BYTES
            if size <= self._budget:
                self._keep(path, pixels, size)
        return pixels

    def _keep(self, path: Path, pixels: np.ndarray, size: int) -> None:
        partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
        try:
            with ExitStack() as stack:
                with self._locked("room"):
                    self._make_room(size)
                    file = stack.enter_context(partial.open("xb"))
                    file.truncate(size)  # others that list the folder meanwhile count its final size
                np.save(file, pixels, allow_pickle=False)
            with suppress(FileNotFoundError):  # evicted before it was whole
                partial.replace(path)
        except OSError as error:  # a full disk must not end the run
            print(f"warning: {self.folder} cannot be written ({error.strerror}); decoding continues", file=sys.stderr)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _make_room(self, needed: int) -> None:
        """Count `needed` in. The folder is looked at where that is too much, and evicted from until there is room for
        a while: the count may drift (processes are killed, files vanish), and is then put right.
        """
        counted = self._counted()
        if counted is None or counted + needed > self._budget:
            counted = self._evict(needed)
        (self.folder / _COUNT_FILE).write_text(str(counted + needed), encoding="ascii")

    def _counted(self) -> int | None:
        try:
            return int((self.folder / _COUNT_FILE).read_text(encoding="ascii"))
        except (OSError, ValueError):  # missing, or an incomplete number
            return None

    def _evict(self, needed: int) -> int:
        """Evict until there is room for `needed` more bytes, and return the bytes in use."""
        found = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                if entry.name.endswith((".npy", ".partial")):  # a partial file may be left from a killed process
                    status = entry.stat()
                    found.append((status.st_mtime_ns, status.st_size, entry.path))
        used = sum(size for _, size, _ in found)
        if used + needed <= self._budget:
            return used
        for _, size, path in sorted(found):
            if used + needed <= _KEPT * self._budget:
                break
            Path(path).unlink(missing_ok=True)  # processes that have it mapped keep it
            used -= size
        return used

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self.folder / f".lock-{name}").open("w") as lock:
            deadline = time.monotonic() + _PATIENCE_S
            while not _locks(lock):
                if time.monotonic() > deadline:
                    print(f"warning: {lock.name} was held for {_PATIENCE_S:g} s; continuing without", file=sys.stderr)
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
    """Return the folder where this user's processes on this node keep pixels of all stores, named by content."""
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
