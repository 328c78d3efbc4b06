"""Study files: runs that prepare what all share, arms, seeds, and what concludes them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from ral_system.config import commands as configurations
from ral_system.config.known import did_you_mean, is_known, known_keys, other_readers
from ral_system.errors import ConfigError

STUDIES = Path(__file__).parent.parent / "studies"
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
_NOTE = "study_run.json"


Words = Annotated[list[str], Field(min_length=1)]


class Compared(BaseModel):
    """Which differences between arms are shown, paired by seed and question."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: str
    """Arm that all others are compared with."""
    claims: list[str] = []
    """Arms that a claim was registered for before the study ran: their p-values are corrected for their number."""
    controls: dict[str, list[str]] = {}
    """Arms that an arm is compared with besides the baseline, by arm."""
    difference: PositiveFloat = 0.02
    """Difference in accuracy that is worth finding; the table gives the seeds that this takes with a power of 0.8."""


class StudyFile(BaseModel):
    """Contents of a study file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    prepare: list[Words]
    """Commands, run once, in order; `${folder}` is the study's folder."""
    arms: Annotated[dict[str, Words], Field(min_length=1)]
    """A command each, run once per seed; `${seed}` is the seed, so an arm may continue from an earlier one's."""
    common: list[str] = []
    """Arguments added to every arm's command."""
    seeds: Annotated[list[int], Field(min_length=1)]
    evaluate: list[str] | None = None
    """Arguments of `ral-evaluate` for every arm's model; null: the table shows the accuracy measured in training."""
    compare: Compared | None = None
    """Differences in the scores of `evaluate`; null: none."""
    figures: list[str] = []
    """Names of more figures from evaluation.json for the tables; dotted names lead to nested ones, and numbers into
    lists: `looks_by_layer.evidence_mass.0` is the first layer's."""
    metrics: list[str] = []
    """Names from an arm's metrics.jsonl, shown with their first and last values in training."""
    curves: list[str] = []
    """Names from an arm's metrics.jsonl, drawn over the steps."""
    conclude: list[Words] = []
    """Commands, run once, in order, after all arms: a sweep over their models."""

    @model_validator(mode="after")
    def _compares_arms(self) -> Self:
        if self.compare is None:
            return self
        if self.evaluate is None:
            raise ValueError("compare needs the scores of each question; add evaluate: []")
        claims = self.compare.claims
        if self.compare.baseline in claims:
            raise ValueError(f"compare.claims names the baseline {self.compare.baseline}; remove it")
        if len(set(claims)) < len(claims):
            raise ValueError(f"compare.claims={claims} names an arm twice; remove one")
        named = [self.compare.baseline, *claims, *self.compare.controls]
        for arm in (*named, *(arm for arms in self.compare.controls.values() for arm in arms)):
            if arm not in self.arms:
                raise ValueError(f"compare names {arm}, which is not one of the arms {', '.join(self.arms)}")
        return self


@dataclass(frozen=True)
class Run:
    """One command of a study."""

    name: str
    """Name of its run folder."""
    command: tuple[str, ...]
    arm: str | None = None
    """None, like the seed, for a run that prepares, evaluates or concludes."""
    seed: int | None = None
    evaluates: Path | None = None
    """Model folder that the run evaluates."""
    folder: Path | None = None
    """Its run folder; None, like `leaves`, where only the command itself can tell whether it is complete."""
    leaves: str | None = None
    """File in its folder that exists once the run is complete."""
    after: frozenset[str] = frozenset()
    """Names of the runs that must have ended before."""

    def complete(self) -> bool:
        """Return whether exactly this command has run on the models that are there now."""
        if self.folder is None or self.leaves is None or not (self.folder / self.leaves).is_file():
            return False
        note = self.folder / _NOTE
        return note.is_file() and json.loads(note.read_text(encoding="utf-8")) == self._note()

    def note_complete(self) -> None:
        """Record what was run, and on what."""
        if self.folder is not None and self.folder.is_dir():
            (self.folder / _NOTE).write_text(json.dumps(self._note()), encoding="utf-8")

    def goes_on_from(self, folder: Path) -> bool:
        """Return whether the run starts from, or evaluates, a model of the run in `folder`."""
        return any(f"{folder}/" in word for word in self.command)

    def _note(self) -> list[str]:
        paths = (Path(word.partition("=")[2]) for word in self.command if word.startswith("start_model="))
        made = [path / "stage.json" for path in paths]
        return [*self.command, *(file.read_text(encoding="utf-8") if file.is_file() else "" for file in made)]


@dataclass(frozen=True)
class Study:
    """Read a study file, with its folder filled in."""

    title: str
    runs: tuple[Run, ...]
    arms: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    compare: Compared | None = None
    evaluated: bool = True


def known_studies() -> str:
    """Return the names of the studies that come with the package."""
    return ", ".join([*sorted(path.stem for path in STUDIES.glob("*.yaml")), "icl (must come first)"])


def read_study(path: Path, folder: Path, seeds: list[int] | None = None, overrides: list[str] | None = None) -> Study:
    """Return the study's runs, each after those that it needs. Raises ConfigError."""
    found = _read(path)
    extra = [f"runs_dir={folder}", *(overrides or [])]
    for override in overrides or []:
        _check_known(override)

    def command(words: list[str], known: Collection[str] = COMMANDS, **values: object) -> tuple[str, ...]:
        filled = [Template(word).safe_substitute(folder=folder, **values) for word in words]
        if filled[0] not in known:
            raise ConfigError(f"study {path}: {filled[0]} is not one of {', '.join(known)}")
        kind = configurations.COMMANDS[filled[0]]
        return (*filled, *(word for word in extra if not other_readers(_key(word), kind)))

    _check_arms(path, found)
    chosen = seeds or found.seeds
    if twice := [seed for seed in chosen if chosen.count(seed) > 1]:
        raise ConfigError(
            f"study {path}: seed {twice[0]} is given twice, and its runs would share a folder; remove one"
        )
    first = [Run(_name(words), command(words)) for words in found.prepare]
    middle: list[Run] = []
    for seed in chosen:
        for arm, words in found.arms.items():
            name = f"{arm}_seed{seed}"
            given = command([words[0], *found.common, *words[1:]], MODELS, seed=seed)
            model = MODELS[words[0]]
            given = (*given, f"name={name}", f"seed={seed}")
            middle.append(Run(name, given, arm, seed, folder=folder / name, leaves=f"{model}/stage.json"))
            if found.evaluate is not None:
                middle.append(_evaluation(folder, name, model, command(["ral-evaluate", *found.evaluate])))
    last = [Run(_name(words), command(words)) for words in found.conclude]
    runs = _ordered(path, first, middle, last, folder)
    if unread := set(extra).difference(*(run.command for run in runs)):
        raise ConfigError(f"--overrides {min(unread)}: no command of the study reads it; remove it")
    return Study(
        found.title,
        runs,
        tuple(found.arms),
        tuple(found.metrics),
        tuple(found.curves),
        tuple(found.figures),
        found.compare,
        found.evaluate is not None,
    )


def evaluation_of(name: str) -> str:
    """Return the folder in which a run's model is evaluated."""
    return f"{name}_evaluation"


def _read(path: Path) -> StudyFile:
    import yaml

    try:
        return StudyFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"study {path}: no such file; known studies: {known_studies()}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"study {path}: {error}; give a file like {STUDIES}/distill_quickstart.yaml") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"study {path}: {where}: {first['msg']}; see {STUDIES}/distill_quickstart.yaml") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"study {path}: {' '.join(str(error).split())}") from None


def _check_arms(path: Path, found: StudyFile) -> None:
    for arm, words in found.arms.items():
        if found.evaluate is None and words[0] in ("ral-sft", "ral-perceive"):
            raise ConfigError(f"study {path}: arms.{arm} has no RL stage, which measures accuracy; add evaluate: []")
        if words[0] == "ral-train" and any(word.startswith("stages=") and "rl" not in word for word in words):
            raise ConfigError(f"study {path}: arms.{arm} leaves no model of RL; use ral-sft or ral-perceive")


def _evaluation(folder: Path, of: str, model: str, command: tuple[str, ...]) -> Run:
    name, evaluated = evaluation_of(of), folder / of / model
    given = (*command, f"start_model={evaluated}", f"name={name}")
    return Run(name, given, evaluates=evaluated, folder=folder / name, leaves="evaluation.json")


def _ordered(
    path: Path, first: Sequence[Run], middle: Sequence[Run], last: Sequence[Run], folder: Path
) -> tuple[Run, ...]:
    """Order the runs: the preparing ones, then each arm after those that it continues, then the concluding ones."""
    runs: list[Run] = []
    prepared = frozenset(run.name for run in first)
    for run in (*first, *middle, *last):
        if run in middle:
            after = prepared | {other.name for other in middle if run.goes_on_from(folder / other.name)}
        else:
            after = frozenset(other.name for other in runs)
        runs.append(replace(run, after=after - {run.name}))
    ended: set[str] = set()
    while ready := {run.name for run in runs if run.name not in ended and run.after <= ended}:
        ended |= ready
    if waiting := [run.name for run in runs if run.name not in ended]:
        raise ConfigError(f"study {path}: {', '.join(waiting)} wait for each other; start one from another model")
    return tuple(runs)


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
