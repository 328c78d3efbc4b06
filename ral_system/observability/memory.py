"""How much memory this process has held."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_gib() -> float:
    """The most memory since `take_peak_gib`, in GiB: of the fullest GPU where the process uses some itself, else of the
    process.

    0 where the system does not tell.
    """
    if (cuda := _cuda()) is not None:
        return max(float(cuda.max_memory_allocated(gpu)) for gpu in range(cuda.device_count())) / 2**30
    found = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(found[0].split()[1]) / 2**20 if found else 0.0


def take_peak_gib() -> float:
    """`peak_gib`; then the peak becomes what is held now, where the system lets it."""
    peak = peak_gib()
    if (cuda := _cuda()) is not None:
        for gpu in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(gpu)
    else:
        with suppress(OSError):  # a container may forbid it
            _RESET.write_text("5")  # proc(5): resets the resident set's peak
    return peak


def _cuda() -> Any:
    """PyTorch's CUDA module, if this process has begun to use it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None
