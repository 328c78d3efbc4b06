"""`constraints-gpu.txt` against the package index, if one answers: metadata only, no wheel is downloaded."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
PINS = ROOT / "constraints-gpu.txt"
NO_INDEX = re.compile(r"dns error|Connection refused|Network is unreachable|operation timed out", re.IGNORECASE)


def resolve(constraints: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Resolve what `pip install -c CONSTRAINTS '.[gpu]'` would install on Linux x86-64 under that Python."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert uv is not None, "uv is not installed: pip install -c constraints-cpu.txt -e '.[cpu,dev]'"
    done = subprocess.run(
        [uv, "pip", "compile", "pyproject.toml", "--extra", "gpu", "--constraints", str(constraints),
         "--python-version", python, "--python-platform", "x86_64-manylinux_2_28",
         "--no-annotate", "--no-header", "--no-progress"],
        cwd=ROOT,
        env=os.environ | {"UV_PYTHON_DOWNLOADS": "never", "UV_HTTP_RETRIES": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )  # fmt: skip
    if done.returncode and NO_INDEX.search(done.stderr):
        pytest.skip("the package index cannot be reached")
    return done


def pins(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_gpu_set_resolves_and_leaves_nothing_open(python: str) -> None:
    done = resolve(PINS, python)
    assert done.returncode == 0, done.stderr
    assert pins(done.stdout) == pins(PINS.read_text())


def test_a_pin_that_conflicts_is_found(tmp_path: Path) -> None:
    wrong = tmp_path / "constraints.txt"
    text, replaced = re.subn(r"(?m)^triton==.*$", "triton==3.9.0", PINS.read_text())
    assert replaced == 1
    wrong.write_text(text)
    done = resolve(wrong, "3.12")
    assert done.returncode != 0
    assert re.search(r"triton\S*==3\.9\.0", "".join(done.stderr.split())), done.stderr
