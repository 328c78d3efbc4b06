"""The head's benchmark runs, and its figures show that tiles take memory that does not grow with the tokens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.long
def test_a_dry_run_shows_memory_that_does_not_grow_with_the_tokens(tmp_path: Path) -> None:
    out = tmp_path / "head.json"
    command = [sys.executable, "-m", "bench.head", "--dry-run", "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "quickstart's shape" in done.stdout
    found = json.loads(out.read_text())
    few, many = found["sizes"]
    assert (few["tokens"], many["tokens"]) == (3000, 6000)
    assert not few["failure"] and not many["failure"]
    assert many["dense_peak_bytes"] > 1.8 * few["dense_peak_bytes"] > 1.8 * (256 << 20)
    assert few["tiled_peak_bytes"] < 64 << 20
    assert many["tiled_peak_bytes"] < few["tiled_peak_bytes"] + (4 << 20)
    assert min(few["dense_s"] + many["tiled_s"]) > 0
