"""Removal of the run folder that a refused start would leave behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ral_system.errors import RalError
from ral_system.observability.metrics import COMMANDS_FILE


@contextmanager
def leaving_nothing(root: Path) -> Iterator[None]:
    """Remove the folder again when the block raises a RalError, or cannot import what it needs.

    It stays if it was there before, or something is in it.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        yield
    except (RalError, ImportError):
        if made and not _holds_anything(root):
            shutil.rmtree(root, ignore_errors=True)
            for folder in made[1:]:
                with suppress(OSError):  # another run is in it
                    folder.rmdir()
        raise


def _holds_anything(root: Path) -> bool:
    """Return whether a folder holds more than lock, configuration, command, and empty files and folders."""
    started = (root / ".lock", root / "config.yaml", root / COMMANDS_FILE)
    return any(
        path.is_symlink() or (path.is_file() and path.stat().st_size > 0 and path not in started)
        for path in root.rglob("*")
    )
