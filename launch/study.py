"""`ral-study NAME`: several ways to train, each with several seeds, from the same start; then one table.

A study is a file in `launch/studies/` or a path to one: runs that prepare what all share, arms, and seeds.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launch.arguments import Parser
from launch.cli import fail
from ral_system.errors import ConfigError, RalError

STUDIES = Path(__file__).parent / "studies"
COMMANDS = {"ral-train": "main", "ral-perceive": "perceive", "ral-sft": "sft", "ral-rl": "rl"}
_DESCRIPTION = """\
Runs the commands of a study one after the other, each in a process of its own, and writes the table of what came out:
study.md and study.json in --runs-dir/NAME, where every run has its own folder. The same command again continues where
an interrupted study stopped: runs that are complete are left alone.
"""
_EPILOG = """\
  ral-study distill_quickstart                        the teacher, the student, three arms of three seeds
  ral-study distill_quickstart --dry-run              the commands alone
  ral-study my_study.yaml --seeds 0 1 --overrides algorithm.steps=10
"""


Words = Annotated[list[str], Field(min_length=1)]


class StudyFile(BaseModel):
    """What a study file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    prepare: list[Words]
    """Commands, run once, in order; `${folder}` is the study's folder."""
    common: Words
    """The command of every arm."""
    arms: Annotated[dict[str, list[str]], Field(min_length=1)]
    """What an arm adds to it."""
    seeds: Annotated[list[int], Field(min_length=1)]
    metrics: list[str] = []


@dataclass(frozen=True)
class Run:
    """One command of a study."""

    name: str
    """Its folder."""
    command: tuple[str, ...]
    arm: str | None = None
    """None, like the seed, in a run that prepares."""
    seed: int | None = None


@dataclass(frozen=True)
class Study:
    """A study file, with its folder filled in."""

    title: str
    runs: tuple[Run, ...]
    arms: tuple[str, ...]
    metrics: tuple[str, ...]
    """Of `metrics.jsonl`: their first and last values in training are shown."""


def main() -> None:
    """Run the study, write and print its table."""
    parser = Parser(
        prog="ral-study",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    known = ", ".join(sorted(path.stem for path in STUDIES.glob("*.yaml")))
    parser.add_argument("study", help=f"one of {known}, or the path of a file like those")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="folder of the study's folder (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the study's own")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="added to every run")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and do nothing")
    options = parser.parse_args()
    try:
        path = Path(options.study) if options.study.endswith((".yaml", ".yml")) else STUDIES / f"{options.study}.yaml"
        folder = (options.runs_dir / path.stem).resolve()
        study = read_study(path, folder, options.seeds, options.overrides)
        for number, run in enumerate(study.runs, 1):
            print(f"[{number}/{len(study.runs)}] {shlex.join(run.command)}", flush=True)
            if not options.dry_run:
                execute(run)
        if not options.dry_run:
            print(write_table(study, folder))
    except RalError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def read_study(path: Path, folder: Path, seeds: list[int] | None = None, overrides: list[str] | None = None) -> Study:
    """The study's runs in order. Raises ConfigError."""
    import yaml

    try:
        found = StudyFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
        raise ConfigError(f"study {path}: no such file; known studies: {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"study {path}: {error}; give a file like {STUDIES}/distill_quickstart.yaml") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"study {path}: {where}: {first['msg']}; see {STUDIES}/distill_quickstart.yaml") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"study {path}: {' '.join(str(error).split())}") from None
    extra = [f"runs_dir={folder}", *(overrides or [])]

    def command(words: list[str]) -> tuple[str, ...]:
        filled = [Template(word).safe_substitute(folder=folder) for word in words]
        if filled[0] not in COMMANDS:
            raise ConfigError(f"study {path}: {filled[0]} is not one of {', '.join(COMMANDS)}")
        return (*filled, *extra)

    runs = [Run(_name(words), command(words)) for words in found.prepare]
    for seed in seeds or found.seeds:
        for arm, words in found.arms.items():
            name = f"{arm}_seed{seed}"
            given = (*command([*found.common, *words]), f"name={name}", f"seed={seed}")
            runs.append(Run(name, given, arm, seed))
    return Study(found.title, tuple(runs), tuple(found.arms), tuple(found.metrics))


def execute(run: Run) -> None:
    """Run a command to its end. Raises ConfigError with its exit code."""
    name = run.command[0]
    entry = f"import sys; from launch.train import {COMMANDS[name]} as run; sys.argv[0] = {name!r}; run()"
    done = subprocess.run([sys.executable, "-c", entry, *run.command[1:]], check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise ConfigError(f"{run.name} ended with exit code {done.returncode}; the line above says why")


def write_table(study: Study, folder: Path) -> str:
    """Held-out accuracy of every arm and seed, and the metrics asked for, into `study.md` and `study.json`."""
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in study.arms}
    for run in study.runs:
        if run.arm is not None:
            results[run.arm].append(_result(folder / run.name, study.metrics))
    seeds = dict.fromkeys(run.seed for run in study.runs if run.arm is not None)
    header = ["", "before", *(f"seed {seed}" for seed in seeds), "mean", *study.metrics]
    lines = [f"# {study.title}", "", _row(header), _row(["---"] * len(header))]
    for arm, found in results.items():
        after = [r["held_out_accuracy"] for r in found]
        before = statistics.mean(r["held_out_accuracy_before"] for r in found)
        shown = [_first_to_last([r["metrics"][metric] for r in found]) for metric in study.metrics]
        lines.append(
            _row([arm, f"{before:.3f}", *(f"{a:.3f}" for a in after), f"**{statistics.mean(after):.3f}**", *shown])
        )
    lines += ["", "Held-out accuracy, greedy; metrics: mean over seeds of the first and the last step."]
    table = "\n".join(lines) + "\n"
    folder.joinpath("study.md").write_text(table, encoding="utf-8")
    folder.joinpath("study.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return table


def _name(words: list[str]) -> str:
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    return given.get("name") or given.get("experiment") or words[0]


def _result(folder: Path, metrics: tuple[str, ...]) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    values = {m: [line[m] for line in lines if line["stage"] == "rl" and m in line] for m in metrics}
    before = next(line["eval/accuracy"] for line in lines if line["stage"] == "rl" and "eval/accuracy" in line)
    return {
        "run": folder.name,
        "held_out_accuracy_before": before,
        "held_out_accuracy": summary["held_out_accuracy_after_rl"],
        "metrics": {m: [found[0], found[-1]] if found else None for m, found in values.items()},
    }


def _first_to_last(pairs: list[list[float] | None]) -> str:
    known = [pair for pair in pairs if pair is not None]
    if not known:
        return "-"
    first, last = (statistics.mean(pair[i] for pair in known) for i in (0, 1))
    return f"{first:.3g} → {last:.3g}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
