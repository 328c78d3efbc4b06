"""One side of a round: a whole process without a GPU, whose output goes to a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.peers.environment import telling_line
from bench.peers.errors import PeerError

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 3600


def run_module(
    what: str, module: str, arguments: Sequence[str], *, path: Sequence[Path], log: Path, settings: Mapping[str, str]
) -> None:
    """Run `python -m module` with the checkout and `path` on its path. Raises PeerError with the telling line."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path))),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # ral_system sets it itself; TRL must not lose by idle threads that spin
        **settings,
    }
    with log.open("w", encoding="utf-8") as output:
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise PeerError(f"{what} did not end within {TIMEOUT_S} s; {log} has its output") from None
    if done.returncode:
        line = telling_line(log.read_text(encoding="utf-8", errors="replace")) or f"exit code {done.returncode}"
        raise PeerError(f"{what} failed: {line}; {log} has its output")
