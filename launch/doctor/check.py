"""A line of the doctor's table, and a way to try imports in a separate process."""

from __future__ import annotations

import enum
import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

PROBE_TIMEOUT_S = 300.0
"""Deadline of a probe: importing vLLM takes seconds on a free machine and minutes on a busy one."""


class Status(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    MISSING = "missing"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table.

    Example: `Check("torch", Status.MISSING, "not installed", "pip install torch", blocks=("cpu", "gpu"))`
    """

    name: str
    status: Status
    found: str
    remedy: str = ""
    blocks: tuple[str, ...] = ()
    """Kinds of run, `cpu` and `gpu`, that cannot work in this state."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Outcome of code that ran in its own process."""

    ok: bool
    value: dict[str, Any] = field(default_factory=dict)
    """The JSON value that the code printed as its last line."""
    error: str = ""
    timed_out: bool = False


def probe(code: str, timeout_s: float = PROBE_TIMEOUT_S) -> Probe:
    """Run Python code in its own process: a package that crashes or hangs on import ends only that process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],  # -P: files in the current folder must not pass for packages
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Probe(False, error=f"no answer within {timeout_s:g} s", timed_out=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return Probe(False, error=lines[-1] if lines else f"exit code {done.returncode}")
    lines = done.stdout.strip().splitlines()
    return Probe(True, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {})


def version_of(distribution: str) -> str | None:
    """Return the installed version from metadata only; None if not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
