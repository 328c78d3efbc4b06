"""`ral-study NAME`: several ways to train, each with several seeds, from the same start; then one table.

A study is a file in `launch/studies/` or a path to one: runs that prepare what all share, arms, seeds, and what
concludes it.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ral_system.config import commands as configurations
from ral_system.config.known import did_you_mean, is_known, known_keys, other_readers
from ral_system.errors import ConfigError, RalError
from ral_system.launch.arguments import Parser
from ral_system.launch.mistakes import fail

STUDIES = Path(__file__).parent / "studies"
COMMANDS = {
    "ral-train": "ral_system.launch.train:main",
    "ral-perceive": "ral_system.launch.train:perceive",
    "ral-sft": "ral_system.launch.train:sft",
    "ral-rl": "ral_system.launch.train:rl",
    "ral-synthesize": "ral_system.launch.synthesize:main",
    "ral-evaluate": "ral_system.launch.evaluate:main",
}
MODELS = {"ral-train": "model", "ral-rl": "model", "ral-sft": "models/sft", "ral-perceive": "models/perceive"}
"""Stage whose model an arm's command leaves."""
_NOTE = "evaluated.json"
_DESCRIPTION = """\
Run the commands of a study one after the other, each in its own process, and write the results to study.md, study.json,
study.svg and curves.svg in --runs-dir/NAME. Every run has its own folder there. The same command continues an
interrupted study and skips runs that are complete. An arm that fails does not end the study; the table gives the step
at which it failed.
"""
_EPILOG = """\
  ral-study distill_quickstart                        the teacher, the student, three arms of three seeds
  ral-study avar_quickstart                           AVAR step by step, with the visual attention score of each
  ral-study visual_tokens_quickstart                  cold start, GRPO and RAL on larger and larger pictures
  ral-study distill_quickstart --dry-run              only print the commands
  ral-study my_study.yaml --seeds 0 1 --overrides algorithm.steps=10
"""


Words = Annotated[list[str], Field(min_length=1)]


class StudyFile(BaseModel):
    """Contents of a study file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    prepare: list[Words]
    """Commands, run once, in order; `${folder}` is the study's folder."""
    arms: Annotated[dict[str, Words], Field(min_length=1)]
    """A command each, run once per seed, in order; `${seed}` is the seed, so an arm may continue from another's."""
    common: list[str] = []
    """Arguments added to every arm's command."""
    seeds: Annotated[list[int], Field(min_length=1)]
    evaluate: list[str] | None = None
    """Arguments of `ral-evaluate` for every arm's model; null: the table shows the accuracy measured in training."""
    metrics: list[str] = []
    """Names from an arm's metrics.jsonl, shown with their first and last values in training."""
    curves: list[str] = []
    """Names from an arm's metrics.jsonl, drawn over the steps."""
    conclude: list[Words] = []
    """Commands, run once, in order, after all arms: a sweep over their models."""


@dataclass(frozen=True)
class Run:
    """One command of a study."""

    name: str
    """Name of its run folder."""
    command: tuple[str, ...]
    arm: str | None = None
    """None, like the seed, for a run that prepares or evaluates."""
    seed: int | None = None
    evaluation: Path | None = None
    """The file that an evaluation writes; None for other runs."""
    evaluates: Path | None = None
    """Model folder that the run evaluates."""

    def evaluated(self) -> bool:
        """Return whether exactly this command has evaluated the model that is there now."""
        if self.evaluation is None or not self.evaluation.is_file():
            return False
        note = self.evaluation.with_name(_NOTE)
        return note.is_file() and json.loads(note.read_text(encoding="utf-8")) == self._note()

    def goes_on_from(self, folder: Path) -> bool:
        """Return whether the run starts from, or evaluates, a model of the run in `folder`."""
        return any(f"{folder}/" in word for word in self.command)

    def note_evaluated(self) -> None:
        """Record what was evaluated, and how."""
        if self.evaluation is not None:
            self.evaluation.with_name(_NOTE).write_text(json.dumps(self._note()), encoding="utf-8")

    def _note(self) -> list[str]:
        made = self.evaluates / "stage.json" if self.evaluates else None
        return [*self.command, made.read_text(encoding="utf-8") if made and made.is_file() else ""]


@dataclass(frozen=True)
class Study:
    """Read a study file, with its folder filled in."""

    title: str
    runs: tuple[Run, ...]
    arms: tuple[str, ...]
    metrics: tuple[str, ...]
    curves: tuple[str, ...]
    evaluated: bool


def main() -> None:
    """Run the study, then write and print its table."""
    parser = Parser(
        prog="ral-study",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    known = ", ".join(sorted(path.stem for path in STUDIES.glob("*.yaml")))
    parser.add_argument("study", help=f"one of {known}, or the path of your own study file")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="where the study's folder is made (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds to run instead of the study's own")
    parser.add_argument(
        "--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="overrides added to every run that reads them"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell leaves it ignored in its background jobs
    from ral_system.launch.study_results import write_results

    try:
        path = Path(options.study) if options.study.endswith((".yaml", ".yml")) else STUDIES / f"{options.study}.yaml"
        folder = (options.runs_dir / path.stem).resolve()
        study = read_study(path, folder, options.seeds, options.overrides)
        failed: list[str] = []
        for number, run in enumerate(study.runs, 1):
            print(f"[{number}/{len(study.runs)}] {shlex.join(run.command)}", flush=True)
            if options.dry_run:
                continue
            if lost := [name for name in failed if run.goes_on_from(folder / name)]:
                print(f"{run.name} is skipped: it starts from {lost[0]}, which failed", file=sys.stderr, flush=True)
                failed.append(run.name)
            else:
                failed += attempt(run)
        if not options.dry_run:
            print(write_results(study, folder))
        if failed:
            raise RunError(", ".join(failed), 1)
    except RalError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def read_study(path: Path, folder: Path, seeds: list[int] | None = None, overrides: list[str] | None = None) -> Study:
    """Return the study's runs in order. Raises ConfigError."""
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
    for override in overrides or []:
        _check_known(override)

    def command(words: list[str], known: Collection[str] = COMMANDS, **values: object) -> tuple[str, ...]:
        filled = [Template(word).safe_substitute(folder=folder, **values) for word in words]
        if filled[0] not in known:
            raise ConfigError(f"study {path}: {filled[0]} is not one of {', '.join(known)}")
        kind = configurations.COMMANDS[filled[0]]
        return (*filled, *(word for word in extra if not other_readers(_key(word), kind)))

    for arm, words in found.arms.items():
        if found.evaluate is None and words[0] in ("ral-sft", "ral-perceive"):
            raise ConfigError(f"study {path}: arms.{arm} has no RL stage, which measures accuracy; add evaluate: []")
        if words[0] == "ral-train" and any(word.startswith("stages=") and "rl" not in word for word in words):
            raise ConfigError(f"study {path}: arms.{arm} leaves no model of RL; use ral-sft or ral-perceive")
    runs = [Run(_name(words), command(words)) for words in found.prepare]
    for seed in seeds or found.seeds:
        for arm, words in found.arms.items():
            name = f"{arm}_seed{seed}"
            given = command([words[0], *found.common, *words[1:]], MODELS, seed=seed)
            runs.append(Run(name, (*given, f"name={name}", f"seed={seed}"), arm, seed))
            if found.evaluate is not None:
                runs.append(_evaluation(folder, name, MODELS[words[0]], command(["ral-evaluate", *found.evaluate])))
    runs += [Run(_name(words), command(words)) for words in found.conclude]
    if unread := set(extra).difference(*(run.command for run in runs)):
        raise ConfigError(f"--overrides {min(unread)}: no command of the study reads it; remove it")
    return Study(
        found.title,
        tuple(runs),
        tuple(found.arms),
        tuple(found.metrics),
        tuple(found.curves),
        found.evaluate is not None,
    )


def _evaluation(folder: Path, of: str, model: str, command: tuple[str, ...]) -> Run:
    name = evaluation_of(of)
    given = (*command, f"start_model={folder}/{of}/{model}", f"name={name}")
    return Run(name, given, evaluation=folder / name / "evaluation.json", evaluates=folder / of / model)


def evaluation_of(name: str) -> str:
    """Return the folder in which a run's model is evaluated."""
    return f"{name}_evaluation"


def execute(run: Run) -> None:
    """Run a command to its end, unless it is an evaluation with results already. Raises RunError with its exit code.

    An interrupt also reaches the command, from the terminal or from here; we wait for it, since it may have work to
    save.
    """
    if run.evaluated():
        return
    name = run.command[0]
    module, function = COMMANDS[name].split(":")
    entry = f"import sys; from {module} import {function} as run; sys.argv[0] = {name!r}; run()"
    child = subprocess.Popen([sys.executable, "-c", entry, *run.command[1:]])
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    interrupted = False
    try:
        while child.returncode is None:
            try:
                child.wait()
            except KeyboardInterrupt:
                interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)
    if interrupted or child.returncode == 130:
        raise KeyboardInterrupt
    if child.returncode:
        raise RunError(run.name, child.returncode)
    run.note_evaluated()


def attempt(run: Run) -> list[str]:
    """Run a command like `execute`; if an arm or its evaluation fails, return its name to report at the end.

    Wrong input (exit code 2) still ends the study: it is likely to be wrong for the other arms as well.
    """
    try:
        execute(run)
    except RunError as error:
        if (run.arm is None and run.evaluates is None) or error.exit_code == 2:
            raise
        print(f"{error}; the study continues without it", file=sys.stderr, flush=True)
        return [run.name]
    return []


class RunError(RalError):
    """Failure of a run; the study ends with its exit code."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} ended with exit code {code}; see its output above")
        self.exit_code = code


def _check_known(override: str) -> None:
    """Raise ConfigError for a mistyped key; what Hydra reads, or adds and deletes, is left to Hydra."""
    key, kinds = _key(override), set(configurations.COMMANDS.values())
    if override.startswith(("+", "~")) or key.split(".")[0] in ("experiment", "hydra"):
        return
    if not any(is_known(key, kind) for kind in kinds):
        meant = did_you_mean(key, {known for kind in kinds for known in known_keys(kind)})
        raise ConfigError(f"--overrides {override}: unknown key; {meant or 'remove it'}")


def _key(override: str) -> str:
    """Return the key of `key=value`, `+key=value`, `group@package=option` and the like."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".")


def _name(words: list[str]) -> str:
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    return given.get("name") or given.get("experiment") or words[0]


if __name__ == "__main__":
    main()
