"""How gloo and NCCL say that a learner rank has waited too long for the others (torch 2.13)."""

from __future__ import annotations

import re
from pathlib import Path

_GLOO = "Timed out waiting"
_NCCL = re.compile(rb"Watchdog caught collective operation timeout: WorkNCCL\(.*?Timeout\(ms\)=(\d+)\)")
_BEGIN = b"\n--- "
"""Before the first line of a process in its log, which it may share with earlier ones."""
_LOG_BYTES = 2**22


def waited_too_long(error: Exception) -> bool:
    """Return whether gloo raised this since a wait reached its limit."""
    return isinstance(error, RuntimeError) and _GLOO in str(error)


def ended_by_nccl(log: Path) -> float | None:
    """Return the limit, in seconds, at which NCCL's watchdog ended the last process that wrote the log; else None.

    NCCL's waits run on the GPU, so no call can raise their failure.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_BYTES))
            text = b"\n" + file.read()
    except OSError:
        return None
    found = _NCCL.search(text.rpartition(_BEGIN)[2])
    return int(found[1]) / 1000 if found else None


def late(process: str, timeout_s: float) -> str:
    """Return the beginning of the line about a rank for which others did not come."""
    return f"{process} waited for other learner ranks longer than learner.collective_timeout_s={timeout_s:g}"
