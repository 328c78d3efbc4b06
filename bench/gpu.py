"""`python -m bench.gpu`: all that needs a GPU to be seen, in at most eight minutes, with a table last.

Runs the tests in tests/gpu, a file at a time, the attention benchmark, and eight layers of Qwen2.5-VL-7B at 9k and 16k
tokens with and without shared prompts. Each part is a process that has its time whatever the others do: it may run for
its own time and for what earlier parts have left over, and one that fails or runs out of time does not end the others.
A test that takes half of its part's time fails alone, if Python can interrupt it. Lines of a part that begin with a bar
are its figures; gpu.json has all of them. Needs `pip install -c constraints-gpu.txt '.[gpu,dev]'`; tests of what is not
installed are skipped.
"""

from __future__ import annotations

import itertools
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
    """One command, and what it takes to run it in seconds."""

    name: str
    own_s: float
    """Seconds that it may run even if all parts before it have used up theirs."""
    command: tuple[str, ...]
    quick: tuple[str, ...] = ()
    writes: bool = False
    """Whether it takes `--out`, the folder of its figures."""
    tests: bool = False
    """Whether it takes `--timeout`, the limit of each test."""


def _tests(of: str, own_s: float) -> Part:
    """Return the tests of one file."""
    pytest = (*_PYTHON, "pytest", "-q", "-s", "-m", "gpu", "-p", "no:cacheprovider")
    return Part(of, own_s, (*pytest, f"tests/gpu/test_{of}_on_gpu.py"), tests=True)


PARTS = (
    _tests("kernels", 60),
    _tests("fused", 40),
    _tests("spread", 30),
    _tests("bfloat16", 40),
    _tests("plan", 50),
    _tests("weights", 60),
    _tests("residency", 60),
    Part("attention", 60, (*_PYTHON, "bench.attention"), ("--quick",), writes=True),
    Part("shared prompts", 50, (*_PYTHON, "bench.shared_prompts"), ("--quick",), writes=True),
)
"""Parts in their order: those that commonly end early are first, and leave their time to the others. Together they have
450 s, which leaves half a minute of eight for the rest."""


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
    began = time.monotonic()
    ends = itertools.accumulate((part.own_s for part in PARTS), initial=began)
    found = [run(part, options.out, end, quick=options.quick) for part, end in zip(PARTS, [*ends][1:], strict=True)]
    about = {"commit": commit(), "device": _device(), "versions": versions(("torch", "triton", "transformers"))}
    text = json.dumps({**about, "quick": options.quick, "parts": found}, indent=1)
    (options.out / "gpu.json").write_text(f"{text}\n", encoding="utf-8")
    for part in found:
        print("\n".join(("", part["part"], *part["figures"])))
    print(f"\n{about['device']}, commit {about['commit']}\n\n{table(found)}")
    sys.exit(any(part["exit_code"] != 0 for part in found))


def run(part: Part, out: Path, ends_s: float, *, quick: bool) -> dict[str, Any]:
    """Run one part until it ends, or until `ends_s` of the monotonic clock. Its output goes to a log in `out`, and its
    last lines to this process's.
    """
    limit_s = max(0.0, ends_s - time.monotonic())
    command = [*part.command, *(part.quick if quick else ()), *(("--out", str(out)) if part.writes else ())]
    command += [f"--timeout={limit_s / 2:.0f}"] if part.tests else []
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
