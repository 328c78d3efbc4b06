"""`constraints-gpu.txt`, resolved by uv against the package index: metadata only, no wheel is downloaded.

Not by `pip install --dry-run`: for another Python than its own it accepts wheels alone, and DeepSpeed has none.

If no index answers, the tests are skipped, but where the environment variable CI is set, as CI services do, they fail:
pins that nobody has resolved must not look as if they had been.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from _pytest.outcomes import Failed, Skipped
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
        unresolved(done.stderr)
    return done


def unresolved(why: str) -> NoReturn:
    """End a test for which no index has answered."""
    if os.environ.get("CI", "").lower() in ("", "0", "false"):
        pytest.skip("the package index cannot be reached")
    pytest.fail(f"CI is set, and the package index cannot be reached: {why}")


def pins(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize(
    ("ci", "outcome"), [(None, Skipped), ("", Skipped), ("false", Skipped), ("true", Failed), ("1", Failed)]
)
def test_a_set_that_no_index_resolves_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str | None, outcome: type[BaseException]
) -> None:
    monkeypatch.delenv("CI", raising=False)
    if ci is not None:
        monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="the package index cannot be reached"):
        unresolved("dns error")


def test_an_index_that_does_not_answer_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("UV_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("UV_NO_CACHE", "1")
    with pytest.raises(Failed, match="Connection refused"):
        resolve(PINS, "3.12")


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
