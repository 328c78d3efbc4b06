"""Context, clock and checkpoints that all stages of a run share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ral_system.config.choices import Stage
from ral_system.config.commands import TrainConfig
from ral_system.controller.judging import missing_verdicts
from ral_system.controller.residency import Residency
from ral_system.data.prompts import Prompts
from ral_system.errors import ConfigError
from ral_system.evaluation.greedy import Evaluation, evaluate
from ral_system.observability.metrics import MetricsLog, RolloutLog
from ral_system.observability.progress import PhaseTimer, StageProgress
from ral_system.observability.timeline import PeakMemory
from ral_system.protocols import Roles
from ral_system.runs.checkpoint import Checkpoints
from ral_system.runs.folder import RunFolder
from ral_system.types import Prompt


@dataclass
class StageContext:
    """Context that every stage needs."""

    config: TrainConfig
    folder: RunFolder
    model: Path
    """Model that the stage starts from; in rl also the frozen reference."""
    prompts: Prompts
    roles: Roles
    residency: Residency
    metrics: MetricsLog
    rollouts: RolloutLog
    timer: PhaseTimer
    progress: StageProgress
    peaks: PeakMemory
    compares: bool
    """Whether the stage compares engines and learner before it trains: the first one with engines in a session does."""

    def log(self, stage: Stage, step: int, metrics: Mapping[str, float]) -> None:
        """Write a step's metrics, with the peak memory of the calls that have ended since the step before."""
        self.metrics.write(stage, step, {**metrics, **self.peaks.take()})

    def evaluate(self, prompts: list[Prompt]) -> Evaluation:
        """Evaluate greedily with the engines' current weights."""
        self.residency.generate()
        with self.timer.phase("evaluate"):
            found = evaluate(
                self.roles.generator.generate,
                self.roles.rewarder,
                self.config.reward,
                prompts,
                max_new_tokens=self.config.rollout.max_new_tokens,
            )
        if (missing := missing_verdicts(found.rollouts)) is not None:
            self.progress.warn(missing)
        return found

    def origin(self) -> str:
        """Return the start model's path in a form that stays valid when the run folder is moved."""
        root = self.folder.root
        return str(self.model.relative_to(root) if self.model.is_relative_to(root) else self.model)


class StageClock:
    """Wall time of a stage over all its sessions."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self.spent = 0.0

    def total(self) -> float:
        """Return seconds of this session and of those before the last resume."""
        return self.spent + self._clock() - self._start


def resume(context: StageContext, stage: Stage) -> tuple[Checkpoints, int, dict[str, Any]]:
    """Load the newest checkpoint, if any, and drop what was logged after it."""
    checkpoints = Checkpoints(context.folder.checkpoints / stage, context.config.checkpoint.keep)
    newest = checkpoints.newest()
    if newest is None:
        _record_config(context)
        context.metrics.truncate(stage, -1)
        context.rollouts.truncate(stage, -1)
        return checkpoints, 0, {}
    started_from = newest.state["started_from"]
    if started_from != context.origin():
        raise ConfigError(
            f"start_model={context.config.start_model}: {stage} in {context.folder.root} started from "
            f"{started_from}; set start_model to that to continue, or set another name"
        )
    _record_config(context)
    context.timer.resume(newest.state["phases_s"])
    context.progress.resume(newest.step)
    context.roles.learner.load(newest.folder / "learner")
    context.metrics.truncate(stage, newest.step, newest.state["metric_lines"])
    context.rollouts.truncate(stage, newest.step, newest.state["rollout_lines"])
    return checkpoints, newest.step, dict(newest.state)


def save(context: StageContext, checkpoints: Checkpoints, step: int, state: dict[str, Any]) -> None:
    """Save a checkpoint of the learner with the stage's state, which the log's lengths are added to."""
    state |= {
        "started_from": context.origin(),
        "phases_s": context.timer.totals(),
        "metric_lines": context.metrics.lines,
        "rollout_lines": context.rollouts.lines,
    }
    context.residency.train()
    with context.timer.phase("checkpoint"):
        checkpoints.save(step, state, lambda folder: context.roles.learner.save(folder / "learner"))


def _record_config(context: StageContext) -> None:
    """Write config.yaml once all checks have passed, and print what has changed."""
    for field, old, new in context.folder.record(context.config):
        context.progress.say(f"continuing with {field}={new} (was {old})")
