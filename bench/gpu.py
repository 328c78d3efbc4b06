"""`python -m bench.gpu`: all that needs a GPU to be seen, in at most eight minutes, with a table last.

Runs the tests in tests/gpu, a file at a time, the attention benchmark, and eight layers of Qwen2.5-VL-7B at 9k and 16k
tokens with and without shared prompts. Each part is a process with a limit of its own; one that fails or runs out of
time does not end the others. A test that waits too long fails alone, if Python can interrupt it. Lines of a part that
begin with a bar are its figures; gpu.json has all of them. Needs PyTorch, transformers, Triton and pytest; tests of
what is not installed are skipped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.machine import commit, processor, versions
from ral_system.launch.arguments import Parser

_PYTHON = (sys.executable, "-u", "-m")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Part:
    """One command, for how long it may run, and what it takes to run it in seconds."""

    name: str
    limit_s: float
    command: tuple[str, ...]
    quick: tuple[str, ...] = ()
    writes: bool = False
    """Whether it takes `--out`, the folder of its figures."""


def _tests(of: str, limit_s: float, timeout_s: float) -> Part:
    """Return the tests of one file, and for how long each of them may run."""
    pytest = (*_PYTHON, "pytest", "-q", "-s", "-m", "gpu", "-p", "no:cacheprovider", f"--timeout={timeout_s}")
    return Part(of, limit_s, (*pytest, f"tests/gpu/test_{of}_on_gpu.py"))


PARTS = (
    _tests("kernels", 60, 30),
    _tests("fused", 60, 30),
    _tests("spread", 60, 30),
    _tests("bfloat16", 60, 30),
    _tests("plan", 80, 40),
    _tests("weights", 90, 45),
    _tests("residency", 120, 60),
    Part("attention", 150, (*_PYTHON, "bench.attention"), ("--quick",), writes=True),
    Part("shared prompts", 120, (*_PYTHON, "bench.shared_prompts"), ("--quick",), writes=True),
)
"""Cheap ones first."""
LIMIT_S = 450.0
"""Seconds for all parts, whatever hangs. It leaves half a minute of the eight for the rest."""


def main() -> None:
    """Run the parts one after another; write gpu.json, a log for each, and print the table."""
    parser = Parser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, also without a GPU; the figures are meaningless"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks/gpu"), help="folder for the results (%(default)s)"
    )
    options = parser.parse_args()
    if not (options.quick or torch.cuda.is_available()):
        parser.error("torch finds no CUDA device; --quick tries the parts without one")
    options.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + LIMIT_S
    found = [run(part, options.out, ends - time.monotonic(), quick=options.quick) for part in PARTS]
    about = {"commit": commit(), "device": _device(), "versions": versions(("torch", "triton", "transformers"))}
    text = json.dumps({**about, "quick": options.quick, "parts": found}, indent=1)
    (options.out / "gpu.json").write_text(f"{text}\n", encoding="utf-8")
    for part in found:
        print("\n".join(("", part["part"], *part["figures"])))
    print(f"\n{about['device']}, commit {about['commit']}\n\n{table(found)}")
    sys.exit(any(part["exit_code"] != 0 for part in found))


def run(part: Part, out: Path, left_s: float, *, quick: bool) -> dict[str, Any]:
    """Run one part to its end, its limit, or that of all. Its output goes to this process's and to a log in `out`."""
    limit_s = max(0.0, min(part.limit_s, left_s))
    command = [*part.command, *(part.quick if quick else ()), *(("--out", str(out)) if part.writes else ())]
    log = out / f"{part.name.replace(' ', '_')}.log"
    print(f"{part.name}: {' '.join(command[2:])}; at most {limit_s:.0f} s, log {log}", flush=True)
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    print("\n".join(lines[-_SHOWN:]), flush=True)
    return {
        "part": part.name,
        "command": command[1:],
        "seconds": round(time.monotonic() - began, 1),
        "exit_code": code,
        "last_lines": lines[-_SHOWN:],
        "figures": figures(lines),
    }


def figures(lines: Sequence[str]) -> list[str]:
    """Return the rows of a log's tables, once each although they are also printed as they come; else its end."""
    rows = dict.fromkeys(line for line in reversed(lines) if line.startswith("|"))
    return [*reversed(rows)] or [*lines[-4 * _SHOWN :]]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Write the result of every part."""
    rows = ["| part | seconds | outcome | last line |", "|---|---|---|---|"]
    for part in found:
        code = part["exit_code"]
        outcome = "out of time" if code is None else "done" if code == 0 else f"exit code {code}"
        last = part["last_lines"][-1].strip("| ") if part["last_lines"] else ""
        rows.append(f"| {part['part']} | {part['seconds']:.0f} | {outcome} | {last.replace('|', '/')} |")
    return "\n".join(rows)


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


if __name__ == "__main__":
    main()
