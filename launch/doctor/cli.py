"""Check the installation on this machine, and say which kinds of run can work and how to repair the others."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ral_system.launch.arguments import Parser
from ral_system.launch.doctor.check import Check, Status
from ral_system.launch.doctor.fix import fix
from ral_system.launch.doctor.gpus import check_gpus
from ral_system.launch.doctor.machine import check_machine
from ral_system.launch.doctor.packages import check_packages

_COLOURS = {
    Status.OK: "green",
    Status.INFO: "cyan",
    Status.WARNING: "yellow",
    Status.MISSING: "red",
    Status.BROKEN: "red",
}
_RUNS = {"cpu": "CPU run", "gpu": "GPU run"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0 when a CPU run or a GPU run can work, with --gpu a GPU run; else with 1."""
    parser = Parser(prog="ral-doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    parser.add_argument("--fix", action="store_true", help="repair package mismatches of a CPU environment first")
    parser.add_argument(
        "--gpu", action="store_true", help="check a GPU node in detail: driver, CUDA, NCCL, free memory, networks"
    )
    options = parser.parse_args(arguments)
    repairs = fix() if options.fix else []
    checks = [*check_packages(), *check_machine(), *(check_gpus() if options.gpu else [])]
    obstacles = {run: [check.name for check in checks if run in check.blocks] for run in _RUNS}
    if options.json:
        report = {
            "ready": {run: not names for run, names in obstacles.items()},
            "obstacles": obstacles,
            "repairs": repairs,
            "checks": [dataclasses.asdict(check) for check in checks],
        }
        print(json.dumps(report, indent=2))
    else:
        _show(Console(), checks, obstacles, repairs)
    sys.exit(1 if all(obstacles.values()) or (options.gpu and obstacles["gpu"]) else 0)


def _show(console: Console, checks: Sequence[Check], obstacles: dict[str, list[str]], repairs: Sequence[str]) -> None:
    for line in repairs:
        console.print(f"[green]fixed[/] {escape(line)}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "status", "found", "remedy"):
        table.add_column(column, overflow="fold")
    for check in checks:
        status = f"[{_COLOURS[check.status]}]{check.status}[/]"
        table.add_row(escape(check.name), status, escape(check.found), escape(check.remedy))
    console.print(table)
    for run, names in obstacles.items():
        verdict = f"[yellow]not possible[/]: {escape(', '.join(names))}" if names else "[green]ready[/]"
        console.print(f"{_RUNS[run]}: {verdict}")
