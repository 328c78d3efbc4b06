"""Atomic checkpoints: one folder per step with a manifest of its files; without a whole manifest it never counts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint and the controller's state in it."""

    step: int
    state: Mapping[str, Any]
    folder: Path


class Checkpoints:
    """The checkpoints of one stage under `folder`; the newest `keep` are kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, step: int, state: Mapping[str, Any], write: Callable[[Path], None]) -> None:
        """`write(folder)` writes the learner's files; then the manifest; then everything appears at once."""
        partial = self._folder / f".partial_{step:06d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        files = {str(f.relative_to(partial)): _sha256(f) for f in sorted(partial.rglob("*")) if f.is_file()}
        (partial / _MANIFEST).write_text(json.dumps({"step": step, "state": state, "files": files}, indent=1))
        apply_umask(partial)
        for file in (*(partial / name for name in files), partial / _MANIFEST):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        target = self._folder / f"step_{step:06d}"
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
        self.prune(self._keep)

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep`."""
        for old in self._complete()[:-keep]:
            shutil.rmtree(old)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose files are all there and unchanged; None when there is none."""
        for folder in reversed(self._complete()):
            try:
                manifest = json.loads((folder / _MANIFEST).read_text())
                found = Checkpoint(manifest["step"], manifest["state"], folder)
                if all(_sha256(folder / name) == digest for name, digest in manifest["files"].items()):
                    return found
            except (ValueError, KeyError, FileNotFoundError):
                continue  # damaged: an older one may be complete
        return None

    def clear(self) -> None:
        """Remove all checkpoints: a later stage is complete, so this one can no longer continue."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _complete(self) -> list[Path]:
        return sorted(f for f in self._folder.glob("step_*") if (f / _MANIFEST).is_file())


def apply_umask(folder: Path) -> None:
    """Give the files in a new folder the mode that the umask asks for; safetensors lets the owner alone read."""
    mode = folder.stat().st_mode & 0o666  # reading the umask itself would change it for the other threads
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            with contextlib.suppress(PermissionError):  # a file system without modes, or another user's file
                file.chmod(mode)


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
