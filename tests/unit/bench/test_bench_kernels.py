"""The kernels' machine code, made where no GPU is."""

import os
import subprocess
import sys

import pytest

from bench import kernels
from bench.kernels import Usage
from ral_system.attention import fused


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    without_interpreter = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.kernels", *arguments]
    return subprocess.run(command, env=without_interpreter, capture_output=True, text=True, timeout=300)


def test_every_kernel_compiles_for_ampere_and_hopper_and_fits_their_registers_and_shared_memory() -> None:
    done = run("--capability", "80", "90")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [(row[0], row[3]) for row in rows] == [(cc, name) for cc in ("80", "90") for name in fused.KERNELS]
    assert all(16 < int(row[4]) <= 255 and int(row[6]) >= 8 for row in rows)  # figures that were read, not defaults


@pytest.mark.parametrize(
    ("usage", "fits"),
    [(Usage(255, 64, 227 << 10), True), (Usage(255, 72, 8), False), (Usage(20, 0, (227 << 10) + 8), False)],
)
def test_a_kernel_that_does_not_fit_is_said_and_counts_as_failure(
    usage: Usage, fits: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "compiled", lambda *_: iter([("log_sums", usage)]))
    monkeypatch.setattr(sys, "argv", ["kernels", "--capability", "90"])
    with pytest.raises(SystemExit) as ended:
        kernels.main()
    assert ended.value.code == (0 if fits else 1)
    assert ("does not fit" in capsys.readouterr().out) != fits


def test_a_wrong_argument_is_one_line_and_exit_code_2() -> None:
    done = run("--capability", "70")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "--capability" in done.stderr and "70" in done.stderr and "--help" in done.stderr
