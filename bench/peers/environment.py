"""TRL's packages in a folder of their own, which only TRL's processes have on their path."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.peers.errors import PeerError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def prepare(folder: Path, say: Callable[[str], None]) -> Path:
    """Return the folder of TRL's packages, installed unless it has those of `requirements.txt` already."""
    wanted, record = REQUIREMENTS.read_text(encoding="utf-8"), folder / ".installed"
    if record.is_file() and record.read_text(encoding="utf-8") == wanted:
        return folder
    names = ", ".join(pinned(wanted))
    say(f"installing {names} into {folder}: 160 MB, seconds to a minute, once")
    shutil.rmtree(folder, ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    if why := failure([*pip, "--target", str(folder), "--requirement", str(REQUIREMENTS)]):
        raise PeerError(f"TRL was not installed: {why}; check the network, or set PIP_INDEX_URL to an index with them")
    check = f"import sys; sys.path.insert(0, {str(folder)!r}); from trl import GRPOTrainer"
    if why := failure([sys.executable, "-c", check]):
        raise PeerError(f"TRL was installed but cannot be imported: {why}; run `make install`, whose versions it needs")
    record.write_text(wanted, encoding="utf-8")
    return folder


def pinned(requirements: str) -> list[str]:
    """Return the packages of a requirements file, `name==version` each."""
    return [line for line in requirements.splitlines() if line and not line.startswith("#")]


def failure(command: list[str]) -> str | None:
    """Run a command; the line that says why it failed, or None."""
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode == 0 else telling_line(done.stderr) or f"exit code {done.returncode}"


def telling_line(output: str) -> str:
    """Return the last line that names an error, or else the last one, without `error:` before it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines
    return telling[-1].removeprefix("ERROR: ").removeprefix("error: ")[:300] if telling else ""
