"""How a model came to be: the stages that trained it, back to the model that none of them made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ral_system.config.choices import STAGES, Stage
from ral_system.errors import ConfigError
from ral_system.observability.jsonl import read_objects
from ral_system.runs.folder import RunFolder

_HUB_FOLDER = "models--"
"""Begins the name of a download's folder, as in `models--org--name/snapshots/REVISION`."""


@dataclass(frozen=True, slots=True)
class TrainedStage:
    """One complete stage of a run."""

    stage: Stage
    run: Path
    result: Mapping[str, Any]
    """What the stage recorded when it ended."""
    config: Mapping[str, Any]
    made_with: Mapping[str, Any]
    """The newest command of the run, as `versions.this_command` describes it; empty if none is recorded."""


@dataclass(frozen=True, slots=True)
class Base:
    """The model that training started from."""

    name: str
    """Name on the Hugging Face Hub, or what else it was."""
    revision: str | None = None
    """Commit on the hub; None for a model that did not come from there."""

    @property
    def on_hub(self) -> bool:
        """Whether the name is that of a model on the hub."""
        return self.revision is not None


@dataclass(frozen=True, slots=True)
class Lineage:
    """The stages that made a model, the oldest first, and what they began with."""

    stages: tuple[TrainedStage, ...]
    base: Base | None
    """None where the oldest of these runs did not record it."""
    start: Base | None
    """What the last stage began with, on which its adapters belong; None where it did not record it."""

    @property
    def last(self) -> TrainedStage:
        """The stage whose model it is."""
        return self.stages[-1]


def lineage(run: Path, stage: Stage | None = None) -> Lineage:
    """The stages that made the model of `stage`, by default the last complete one of the run.

    A stage that started from another run's model goes on with that run, if its folder is still there. Raises
    ConfigError for a folder that holds no run, and for a stage that is not complete.
    """
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} has no config.yaml; give the folder of a run, for example runs/quickstart")
    complete = [name for name in STAGES if RunFolder(run).result(name) is not None]
    if not complete:
        raise ConfigError(f"{run}: no stage is complete; continue the run, or end it here by a lower number of steps")
    if stage is not None and stage not in complete:
        raise ConfigError(f"--stage {stage}: not complete in {run}; complete: {', '.join(complete)}")
    found: list[TrainedStage] = []
    bases: list[Base | None] = []
    at: tuple[Path, Stage] | None = (run, stage or complete[-1])
    while at is not None and at not in [(trained.run, trained.stage) for trained in found]:  # a name was used again
        found.append(trained := _trained(*at))
        start = trained.result.get("start_model")  # runs of earlier versions do not say
        model = None if start is None else trained.run / start  # absolute paths stay unchanged
        bases.append(None if model is None else _base(model))
        at = None if model is None else _made_by(model)
    return Lineage(tuple(reversed(found)), bases[-1], bases[0])


def _trained(run: Path, stage: Stage) -> TrainedStage:
    folder = RunFolder(run)
    commands = read_objects(folder.commands)
    return TrainedStage(
        stage,
        run,
        folder.result(stage) or {},
        yaml.safe_load(folder.config.read_text(encoding="utf-8")),
        commands[-1] if commands else {},
    )


def _made_by(model: Path) -> tuple[Path, Stage] | None:
    """The run and stage that wrote a model folder, if any did and is still there."""
    run = RunFolder(model.parent if model.name == "model" else model.parent.parent)
    return next(
        (
            (run.root, stage)
            for stage in STAGES
            if run.model(stage) == model and run.result(stage) is not None and run.config.is_file()
        ),
        None,
    )


def _base(start: Path) -> Base:
    if start.parent.name == "models" and start.name == "start":
        return Base("random weights")
    for part, revision in zip(start.parts, start.parts[2:], strict=False):
        if part.startswith(_HUB_FOLDER):
            return Base(part.removeprefix(_HUB_FOLDER).replace("--", "/"), revision)
    return Base("a local model")
