"""Files of a run under `runs/<name>/`, and the rules for continuing it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import yaml

from ral_system.config.algorithm import AlgorithmConfig
from ral_system.config.base import MayChange, Resumable, ResumableSynthesis
from ral_system.config.choices import STAGES, Stage
from ral_system.config.commands import SynthesizeConfig, TrainConfig
from ral_system.config.known import RENAMED, declared_keys, read_by
from ral_system.config.supervised import SupervisedConfig
from ral_system.errors import CheckpointError, ConfigError, SetupError
from ral_system.observability.jsonl import JsonLines, dump, read_lines, write_atomically
from ral_system.observability.metrics import COMMANDS_FILE, METRICS_FILE
from ral_system.runs.checkpoint import apply_umask


@dataclass(frozen=True, slots=True)
class Continuation:
    """What may differ between the command that filled a folder and one that continues it."""

    work: tuple[str, ...]
    """Files; a stage can be continued as soon as one of them is not empty."""
    bound: tuple[str, ...] | None
    """Groups that count; None: all."""
    mark: MayChange
    """Mark of the fields and groups that may change."""


TRAINING = Continuation(work=(METRICS_FILE,), bound=None, mark=Resumable)
SYNTHESIS = Continuation(work=("outputs.jsonl", "rejected.jsonl"), bound=("data", "synthesis"), mark=ResumableSynthesis)

Recorded = TrainConfig | SynthesizeConfig
"""Configurations that a folder is continued with."""
CHANGES_FILE = "changes.jsonl"
"""A line for every start that went on with another configuration:
`{"time": "2026-02-12T09:30:00+00:00", "stage": "rl", "step": 40, "changed": {"rollout.workers": [3, 2]}}`, the newest
step recorded by then and [old, new] values.
"""


class RunFolder:
    """Paths of one run. A stage is complete when its result folder exists: it is renamed into place, whole."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.media = root / "media"
        self.data = root / "data"
        self.logs = root / "logs"
        self.checkpoints = root / "checkpoints"
        self.summary = root / "summary.json"
        self.commands = root / COMMANDS_FILE
        self.start_model = root / "models" / "start"
        self._lock: IO[str] | None = None

    def model(self, stage: Stage) -> Path:
        """Return the folder of a stage's model: `model/` for the last stage, `models/<stage>/` before it."""
        return self.root / "model" if stage == "rl" else self.root / "models" / stage

    def result(self, stage: Stage) -> dict[str, Any] | None:
        """Return what a complete stage recorded, or None if it is not complete. Raises CheckpointError if damaged."""
        file = self.model(stage) / "stage.json"
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            remedy = f"remove {file.parent} to train its stage again"
            raise CheckpointError(f"{file} is damaged ({error}); {remedy}") from None

    def best(self, stage: Stage, step: int) -> Path:
        """Return the folder in which a supervised stage keeps its best model so far."""
        return self.checkpoints / stage / f"best_{step:06d}"

    def steps(self, stage: Stage) -> int:
        """Return the number of steps of a complete stage."""
        result = self.result(stage)
        assert result is not None, f"{stage} is not complete"
        return result["steps"]

    def finished(self, stage: Stage, settings: AlgorithmConfig | SupervisedConfig) -> bool:
        """Return whether a stage is complete, and its settings ask for no more of it.

        Raises ConfigError when they ask for fewer steps than an incomplete stage has made, and for more of a
        complete one that cannot go on: a later stage started from it, or its last checkpoint is gone.
        """
        result, newest = self.result(stage), self._newest_step(stage)
        if isinstance(settings, AlgorithmConfig):
            field, steps, stop_at = "algorithm.steps", settings.steps, None
        else:
            field, steps, stop_at = f"{stage}.max_steps", settings.max_steps, settings.stop_at
        if result is None:
            if newest is not None and newest > steps:
                raise ConfigError(
                    f"{field}={steps}: {self.root} is already at step {newest}; set it to {newest} to end there, or "
                    "higher to train on"
                )
            return False
        if result["steps"] >= steps or (stop_at is not None and result["held_out_score"] >= stop_at):
            return True
        asked = f"{field}={steps}" if stop_at is None else f"{field}={steps}, {stage}.stop_at={stop_at:g}"
        ended = f"{asked}: {stage} in {self.root} ended at step {result['steps']}"
        for later in STAGES[STAGES.index(stage) + 1 :]:
            if self.result(later) is not None or (self.checkpoints / later).is_dir():
                raise ConfigError(f"{ended}, and {later} started from its model; restore the old values")
        if newest is None:
            raise ConfigError(
                f"{ended}, and its last checkpoint is gone; set another name and start_model={self.model(stage)}"
            )
        return False

    def _newest_step(self, stage: Stage) -> int | None:
        steps = [int(folder.name.removeprefix("step_")) for folder in (self.checkpoints / stage).glob("step_*")]
        return max(steps, default=None)

    def complete(self, stage: Stage, result: Mapping[str, Any], save_model: Callable[[Path], object]) -> None:
        """Write a stage's model and result, then move them into place at once."""
        with self.whole(self.model(stage)) as partial:
            save_model(partial)
            (partial / "stage.json").write_text(json.dumps(result, indent=2))

    @staticmethod
    @contextmanager
    def whole(target: Path) -> Iterator[Path]:
        """Yield a folder to write into, which becomes `target` in one step when the block succeeds."""
        partial = target.with_name(f".partial_{target.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        apply_umask(partial)
        replaced = target.with_name(f".replaced_{target.name}")
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.replace(replaced)
        partial.replace(target)
        shutil.rmtree(replaced, ignore_errors=True)

    def open(self, config: Recorded, rules: Continuation = TRAINING) -> None:
        """Create the folder, or check that it may be continued; keep other processes out for as long as this one lives.

        Writes `config.yaml` into a folder without work. In any other `record` does, once training goes on.

        Raises ConfigError naming the fields that changed, SetupError when the folder cannot be written or is in use.
        """
        try:
            self._open(config, rules)
        except OSError as error:
            raise SetupError(
                f"run folder {self.root} cannot be written ({error.strerror}: {error.filename}); set runs_dir to a "
                "folder that you may write to, or another name"
            ) from error

    def _open(self, config: Recorded, rules: Continuation) -> None:
        self.take()
        if self.config.is_file() and config.resume == "never":
            raise ConfigError(f"{self.root} holds a run already; set another name, or resume=auto to continue it")
        changed = self._changed(config, rules, rules.mark) if self.config.is_file() else []
        if not self._holds_work(rules):
            if changed:
                shutil.rmtree(self.start_model, ignore_errors=True)  # was built for the old configuration
            self.record(config, rules)
        elif changed:
            field, old, new = changed[0]
            others = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise ConfigError(
                f"{self.root} was made with {field}={old!r}, now {new!r}{others}; set another name, or restore "
                "the old values to continue it"
            )

    def record(self, config: Recorded, rules: Continuation = TRAINING) -> list[tuple[str, Any, Any]]:
        """Write `config.yaml`. Returns what differs from the one before, after work with it, as (field, old, new).

        Such a difference is also appended to `CHANGES_FILE`.
        """
        now, changed = config.model_dump(mode="json"), []
        if self.config.is_file() and self._holds_work(rules):
            changed = self._changed(config, rules, None)
        if changed:
            newest = (read_lines(self.root / METRICS_FILE) or [{}])[-1]
            line = {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "stage": newest.get("stage"),
                "step": newest.get("step"),
                "changed": {field: [old, new] for field, old, new in changed},
            }
            with (self.root / CHANGES_FILE).open("a", encoding="utf-8") as file:
                file.write(dump(line) + "\n")
        single_first = dict(sorted(now.items(), key=lambda item: isinstance(item[1], dict)))
        write_atomically(self.config, yaml.safe_dump(single_first, sort_keys=False))
        return changed

    def _changed(self, config: Recorded, rules: Continuation, mark: MayChange | None) -> list[tuple[str, Any, Any]]:
        """List the fields that differ from config.yaml and do not carry the mark.

        Earlier versions also wrote what other commands read there.
        """
        old = read_by(type(config), yaml.safe_load(self.config.read_text()))
        return differing_fields(old, config.model_dump(mode="json"), declared_keys(config, mark), rules.bound)

    def add_command(self, record: Mapping[str, Any]) -> None:
        """Append what `versions.this_command` says to the commands that made the folder."""
        with closing(JsonLines(self.commands)) as lines:
            lines.append(record)

    def use_data(self, prepared: Path) -> None:
        """Link the prepared files, and their media, into the folder. Raises ConfigError after work with others."""
        if self.data.is_symlink() and self.data.resolve() != prepared.resolve() and self._holds_work(TRAINING):
            raise ConfigError(
                f"{self.root} was made with {self.data.resolve()}, but since then the files of data.sources, the "
                "processor or the settings of data have changed; set another name, or restore them"
            )
        if self.media.is_dir() and not self.media.is_symlink():
            if self._holds_work(TRAINING):
                raise ConfigError(f"{self.root} was made with generated data; set another name")
            shutil.rmtree(self.media)
        self.root.mkdir(parents=True, exist_ok=True)
        for link, target in ((self.data, os.path.relpath(prepared, self.root)), (self.media, "data/media")):
            aside = link.with_name(f".{link.name}.{os.getpid()}")
            aside.unlink(missing_ok=True)
            aside.symlink_to(target)
            aside.replace(link)

    def drop_start_model(self, setting: str, part: str) -> None:
        """Remove the start model, which was built with another `part` than the setting now names. Raises ConfigError
        after work with it.
        """
        if self._holds_work(TRAINING):
            raise ConfigError(
                f"{setting}: {part} there is not the one that {self.root} was made with; set another name, or restore "
                f"{part}"
            )
        shutil.rmtree(self.start_model)

    def take(self) -> None:
        """Lock the folder until this process ends, however it ends; forked children do not inherit a record lock."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = (self.root / ".lock").open("w")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(
                f"run folder {self.root} is in use by another process; wait for it, stop it, or set another name"
            ) from None

    def _holds_work(self, rules: Continuation) -> bool:
        """Return whether a step was made; a failed start, say with a misspelt model, does not bind the next."""
        files = [self.root / name for name in rules.work]
        return any(self.result(stage) for stage in STAGES) or any(f.is_file() and f.stat().st_size > 0 for f in files)


def differing_fields(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    declared: Mapping[str, bool],
    bound: Collection[str] | None = None,
    prefix: str = "",
) -> list[tuple[str, Any, Any]]:
    """Fields with different values, by dotted path, in the groups that count, except those that may change.

    `declared` says whether each key of the new configuration's classes may. A field that a later version has
    added or replaced is in one record alone and differs from nothing; an entry that somebody has added to a dictionary,
    such as `reward.kinds`, differs.
    """
    found: list[tuple[str, Any, Any]] = []
    for key in sorted(old.keys() | new.keys()):
        path = f"{prefix}{key}"
        if declared.get(path) or (not prefix and bound is not None and key not in bound):
            continue
        if key not in old and path in declared:
            continue
        if key not in new and path in RENAMED:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differing_fields(a, b, declared, bound, f"{path}.")
        elif a != b:
            found.append((path, a, b))
    return found
