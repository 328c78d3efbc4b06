"""What a run leaves under `runs/<name>/`, by name; and the rules for continuing it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from ral_system.config.schema import STAGES, RunConfig, Stage
from ral_system.errors import ConfigError, SetupError
from ral_system.observability.jsonl import write_atomically
from ral_system.observability.metrics import METRICS_FILE


@dataclass(frozen=True, slots=True)
class Continuation:
    """What may differ, by config path, between what filled a folder and what goes on with it."""

    work: tuple[str, ...]
    """Files one of which is not empty once there is something to go on with."""
    bound: tuple[str, ...] | None
    """Groups that count; None: all."""
    may_change: tuple[str, ...]


TRAINING = Continuation(
    work=(METRICS_FILE,),
    bound=None,
    may_change=(
        "resume",
        "start_model",
        "runs_dir",
        "algorithm.steps",
        "cluster",
        "logging",
        "checkpoint",
        "evaluation",
        "stages",
        "sweep",
        "synthesis",
    ),
)
SYNTHESIS = Continuation(
    work=("outputs.jsonl", "rejected.jsonl"),
    bound=("data", "synthesis"),
    may_change=(
        "data.demonstrations",
        "data.glance_share",
        "data.train_records",
        *(
            f"synthesis.{field}"
            for field in ("rows", "concurrency", "attempts", "retries", "timeout_s", "max_rejected")
        ),
        *(
            f"synthesis.{role}.{field}"
            for role in ("describer", "reasoner", "anchorer")
            for field in ("endpoint", "api_key_env", "requests_per_minute")
        ),
    ),
)


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
        self.start_model = root / "models" / "start"
        self._lock: IO[str] | None = None

    def model(self, stage: Stage) -> Path:
        """Where a stage leaves its model: `model/` for the last stage, `models/<stage>/` before it."""
        return self.root / "model" if stage == "rl" else self.root / "models" / stage

    def result(self, stage: Stage) -> dict[str, Any] | None:
        """What a complete stage recorded, or None when it is not complete."""
        file = self.model(stage) / "stage.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def complete(self, stage: Stage, result: Mapping[str, Any], save_model: Callable[[Path], None]) -> None:
        """Write a stage's model and result, then move them into place at once."""
        with self.whole(self.model(stage)) as partial:
            save_model(partial)
            (partial / "stage.json").write_text(json.dumps(result, indent=2))

    @staticmethod
    @contextmanager
    def whole(target: Path) -> Iterator[Path]:
        """A folder to write into, which becomes `target` at once when the block ends well."""
        partial = target.with_name(f".partial_{target.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.replace(target)

    def open(self, config: RunConfig, rules: Continuation = TRAINING) -> None:
        """Create the folder, or check that it may be continued; keep other processes out for as long as this one lives.

        Raises ConfigError naming the fields that changed, SetupError when the folder cannot be written or is in use.
        """
        try:
            self._open(config, rules)
        except OSError as error:
            raise SetupError(
                f"run folder {self.root} cannot be written ({error.strerror}: {error.filename}); set runs_dir to a "
                "folder that you may write to, or another name"
            ) from error

    def _open(self, config: RunConfig, rules: Continuation) -> None:
        self.take()
        now = config.model_dump(mode="json")
        if self.config.is_file():
            if config.resume == "never":
                raise ConfigError(f"{self.root} holds a run already; set another name, or resume=auto to continue it")
            changed = differing_fields(yaml.safe_load(self.config.read_text()), now, rules)
            if changed and not self._holds_work(rules):
                shutil.rmtree(self.start_model, ignore_errors=True)  # was built for the old configuration
            elif changed:
                field, old, new = changed[0]
                raise ConfigError(
                    f"{self.root} was made with {field}={old!r}, now {new!r} ({len(changed)} such fields); "
                    "set another name, or the old values to continue it"
                )
        write_atomically(self.config, yaml.safe_dump(now, sort_keys=False))

    def use_data(self, prepared: Path) -> None:
        """Link the prepared files, and their media, into the folder. Raises ConfigError after work with others."""
        if self.data.is_symlink() and self.data.resolve() != prepared.resolve() and self._holds_work(TRAINING):
            raise ConfigError(
                f"{self.root} was made with {self.data.resolve()}, and the files of data.sources, the processor or "
                "what decides over rows has changed since; set another name, or put them back"
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
        """Whether a step was made; a start that failed, say for a misspelt model, does not bind the next one."""
        files = [self.root / name for name in rules.work]
        return any(self.result(stage) for stage in STAGES) or any(f.is_file() and f.stat().st_size > 0 for f in files)


def differing_fields(
    old: Mapping[str, Any], new: Mapping[str, Any], rules: Continuation, prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """Fields with different values, by dotted path, except those that may change."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted(old.keys() | new.keys()):
        path = f"{prefix}{key}"
        if path in rules.may_change or (not prefix and rules.bound is not None and key not in rules.bound):
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differing_fields(a, b, rules, f"{path}.")
        elif a != b:
            found.append((path, a, b))
    return found
