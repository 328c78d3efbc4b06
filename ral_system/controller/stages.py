"""The stages of a run: perceive and sft imitate demonstrations, rl runs the training loop. All resume."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ral_system.alarms.watch import Alarms
from ral_system.config.choices import Stage, SupervisedStage
from ral_system.config.commands import TrainConfig
from ral_system.controller.judging import NO_VERDICT, missing_verdicts
from ral_system.controller.loop import TrainingLoop
from ral_system.controller.pipeline import PipelinedLoop
from ral_system.controller.residency import Residency
from ral_system.controller.totals import add_to_totals, mean_contrast, said_of_contrast
from ral_system.data.prompts import Prompts
from ral_system.errors import AlarmError, ConfigError
from ral_system.evaluation.blind import blind_gap
from ral_system.evaluation.greedy import Evaluation, evaluate
from ral_system.media.store import MediaStore
from ral_system.observability.metrics import MetricsLog, Phase, RolloutLog
from ral_system.observability.progress import PhaseTimer, StageProgress
from ral_system.protocols import Roles
from ral_system.report.background import ReportWriter
from ral_system.runs.checkpoint import Checkpoints
from ral_system.runs.folder import RunFolder
from ral_system.tasks.open import media_ahead, train_prompts
from ral_system.training.plan import plan_updates
from ral_system.types import Prompt, Rollout, TrainPlan

SHOWN_QUESTIONS = 10
"""Held-out questions whose attention is drawn in the report before and after RL: two of each kind."""


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

    def evaluate_rl(self, prompts: list[Prompt]) -> tuple[Evaluation, dict[str, float]]:
        """Evaluate, with `evaluation.blind` also what pictures add; the metrics of both."""
        found = self.evaluate(prompts)
        blind = blind_gap(found, self.evaluate, MediaStore(self.folder.media)) if self.config.evaluation.blind else {}
        return found, found.metrics() | blind

    def origin(self) -> str:
        """Return the start model's path in a form that stays valid when the run folder is moved."""
        root = self.folder.root
        return str(self.model.relative_to(root) if self.model.is_relative_to(root) else self.model)


def run_supervised(context: StageContext, stage: SupervisedStage) -> None:
    """Imitate demonstrations until the held-out score reaches `stop_at` or the steps run out; keep the best model.

    The score is caption token accuracy for perceive, and the accuracy of greedy answers for sft.
    """
    config, learner = context.config, context.roles.learner
    settings = config.supervised(stage)
    clock = _StageClock()
    checkpoints, step, state = _resume(context, stage)
    clock.spent = state.get("wall_s", 0.0)
    score, best = state.get("score", 0.0), Best(**state["best"]) if "best" in state else None

    with _batches(context, stage, step) as next_batch, context.progress as progress:
        answer: Callable[[], Mapping[str, float]] | None = None
        while step < settings.max_steps and score < settings.stop_at:
            context.residency.train()
            answer = answer or learner.fit(next_batch(), 0)
            step += 1
            evaluates = settings.evaluates(step)
            saves = step == settings.max_steps or step % config.checkpoint.supervised_every == 0
            # The next update waits at the learner, unless this step's weights are needed first.
            following = None if evaluates or saves else learner.fit(next_batch(), 0)
            with context.timer.phase("update"):
                metrics = dict(answer())
            answer = following
            if evaluates:
                score, best, held_out_metrics = _evaluate_and_keep(context, stage, step, best)
                metrics |= held_out_metrics
            context.metrics.write(stage, step, metrics | context.timer.drain())
            progress.update(step, metrics)
            if saves or score >= settings.stop_at:
                kept = {"best": asdict(best)} if best is not None else {}
                _save(context, checkpoints, step, {"score": score, "wall_s": clock.total(), **kept})
                _drop_all_but(context.folder, stage, best)
        if best is None:  # killed before any evaluation, and continued with no more steps to go
            score, best, metrics = _evaluate_and_keep(context, stage, step, None)
            context.metrics.write(stage, step, metrics | context.timer.drain())
        if best.step < step:
            progress.say(f"keeps the model of step {best.step}, whose held-out score {best.score:.3f} is the highest")
    result = {
        "steps": step,
        "held_out_score": best.score,
        "best_step": best.step,
        "wall_s": clock.total(),
        "phases_s": context.timer.totals(),
        "start_model": context.origin(),
    }
    model = context.folder.best(stage, best.step)
    context.folder.complete(stage, result, lambda folder: shutil.copytree(model, folder, dirs_exist_ok=True))


@contextmanager
def _batches(context: StageContext, stage: SupervisedStage, step: int) -> Iterator[Callable[[], TrainPlan]]:
    """Yield a function that returns the batches of `step` and the steps after it, in turn.

    While a batch is trained on, the next one is drawn and its media decoded.
    """
    config, shards = context.config, context.roles.learner.shards
    size = config.supervised(stage).batch
    with (
        media_ahead(config.data, context.folder, config.cluster.media_cache_gib) as media,
        ThreadPoolExecutor(1) as ahead,
    ):

        def draw(step: int) -> TrainPlan:
            demonstrations = [
                context.prompts.demonstration(stage, "train", step * size + i, seed=config.seed) for i in range(size)
            ]
            if media is not None:
                wanted = [medium for demonstration in demonstrations for medium in demonstration.prompt.media]
                media.want(wanted)
                media.wait(wanted)
            return plan_updates(demonstrations, updates=1, shards=shards, max_tokens=config.learner.pass_tokens)

        upcoming = ahead.submit(draw, step)

        def next_batch() -> TrainPlan:
            nonlocal step, upcoming
            with context.timer.phase("data"):
                plan = upcoming.result()
            step += 1
            upcoming = ahead.submit(draw, step)
            return plan

        yield next_batch


@dataclass(frozen=True, slots=True)
class Best:
    """Best evaluated step of a supervised stage; ties go to the latest."""

    step: int
    score: float


def _evaluate_and_keep(
    context: StageContext, stage: SupervisedStage, step: int, best: Best | None
) -> tuple[float, Best, dict[str, float]]:
    """Score the held-out questions, and save the model if no earlier one was better."""
    score_held_out = _held_out_caption_score if stage == "perceive" else _held_out_accuracy
    score, metrics = score_held_out(context, step)
    if best is not None and score < best.score:
        return score, best, metrics
    context.residency.train()
    with context.timer.phase("checkpoint"), context.folder.whole(context.folder.best(stage, step)) as folder:
        context.roles.learner.save_model(folder)
    return score, Best(step, score), metrics


def _drop_all_but(folder: RunFolder, stage: Stage, best: Best | None) -> None:
    """Remove earlier best models; called once a checkpoint records the current one."""
    for model in (folder.checkpoints / stage).glob("best_*"):
        if best is None or model != folder.best(stage, best.step):
            shutil.rmtree(model)


def _held_out_caption_score(context: StageContext, step: int) -> tuple[float, dict[str, float]]:
    """Measure token accuracy on held-out captions."""
    config, learner = context.config, context.roles.learner
    count = config.evaluation.stage_questions // learner.shards * learner.shards
    captions = [context.prompts.demonstration("perceive", "held_out", i) for i in range(count)]
    plan = plan_updates(captions, updates=1, shards=learner.shards, max_tokens=config.learner.pass_tokens)
    with context.timer.phase("evaluate"):
        metrics = dict(learner.validate(plan))
    return metrics["held_out/token_accuracy"], metrics


def _held_out_accuracy(context: StageContext, step: int) -> tuple[float, dict[str, float]]:
    """Measure the accuracy of greedy answers to held-out questions, with this step's weights in the rollout engines."""
    with context.timer.phase("sync"):
        context.residency.publish(step)
    evaluation = context.evaluate(context.prompts.held_out(context.config.evaluation.stage_questions))
    return evaluation.accuracy, evaluation.metrics()


def run_rl(context: StageContext) -> None:
    """Evaluate, train for `algorithm.steps` steps, evaluate again; look at the same pictures before and after."""
    config = context.config
    clock = _StageClock()
    checkpoints, step, state = _resume(context, "rl")
    kind = PipelinedLoop if config.algorithm.max_staleness else TrainingLoop
    with media_ahead(config.data, context.folder, config.cluster.media_cache_gib) as ahead:
        prompt = train_prompts(config.algorithm, context.prompts, ahead)
        loop = kind(config, context.roles, prompt, context.timer, context.residency)
        outcome = _train(context, loop, checkpoints, step, state, clock)
    outcome |= {"start_model": context.origin()}
    context.folder.complete("rl", outcome, context.roles.learner.save_model)


def _train(
    context: StageContext,
    loop: TrainingLoop,
    checkpoints: Checkpoints,
    step: int,
    state: dict[str, Any],
    clock: _StageClock,
) -> dict[str, Any]:
    """Train from `step` to the end, and return the stage's result."""
    config = context.config
    loop.version, loop.next_prompt = state.get("version", 0), state.get("next_prompt", 0)
    clock.spent = state.get("wall_s", 0.0)
    totals: dict[str, float] = state.get("totals", {})
    before: dict[str, float] | None = state.get("before")
    loop.publish()

    reports = ReportWriter(context.folder.root, config.cluster.media_cache_gib)
    with context.progress as progress, closing(loop), reports:
        if before is None:
            before = _evaluate_and_look(context, 0, "before_rl")
            context.metrics.write("rl", 0, before | context.timer.drain())
            _save(context, checkpoints, 0, {"before": before, "wall_s": clock.total()})
        looks = config.algorithm.attention.compares_looks
        alarms = Alarms(config.alarms, loop.weights, state.get("alarms"), before=before, compares_looks=looks)
        progress.update(step, before)
        while step < config.algorithm.steps:
            step += 1
            result = loop.step(until_pause=_steps_until_pause(step, config))
            metrics = result.metrics
            if config.evaluation.every and step % config.evaluation.every == 0 and step < config.algorithm.steps:
                metrics |= context.evaluate_rl(context.prompts.held_out(config.evaluation.every_questions))[1]
                metrics |= context.timer.drain()
            for line in (*alarms.check(result.rollouts, metrics), *(said_of_contrast(metrics) if step == 1 else ())):
                progress.say(line)
            stops = alarms.stopping() if _may_stop(step, config) else None
            if (missing := missing_verdicts(result.rollouts)) is not None:
                progress.warn(missing)
            totals |= add_to_totals(totals, metrics)
            context.metrics.write("rl", step, metrics)
            for rollout in _recorded(result.rollouts, config.logging.groups_per_step):
                context.rollouts.write("rl", step, "train", rollout)
            progress.update(step, metrics)
            if step % config.checkpoint.every == 0 or step == config.algorithm.steps or stops:
                _save(
                    context,
                    checkpoints,
                    step,
                    {
                        "version": loop.version,
                        "next_prompt": loop.next_prompt,
                        "before": before,
                        "totals": totals,
                        "alarms": alarms.state(),
                        "wall_s": clock.total(),
                    },
                )
            if step % config.logging.report_every == 0:
                reports.request()
            if stops:
                raise AlarmError(f"{stops}; step {step} is saved")
        after = _evaluate_and_look(context, step, "after_rl")
        context.metrics.write("rl", step, after | context.timer.drain())
        contrast = mean_contrast(totals)
        for line in said_of_contrast({"attention/contrast": contrast}):
            progress.say(line)
    return {
        "steps": step,
        "held_out_questions": after["eval/questions"],
        "held_out_accuracy_before": before["eval/accuracy"],
        "held_out_accuracy": after["eval/accuracy"],
        "format_rate": after["eval/format_rate"],
        **totals,
        "contrast": contrast,
        "wall_s": clock.total(),
        "phases_s": context.timer.totals(),
    }


def _steps_until_pause(step: int, config: TrainConfig) -> int:
    """Count the steps from this one, included, to the next pause: a checkpoint, an evaluation, or the end."""
    last = config.algorithm.steps
    pauses = (config.checkpoint.every, config.evaluation.every or last, last)
    return 1 + min(-step % every for every in pauses)


def _may_stop(step: int, config: TrainConfig) -> bool:
    """Return whether an alarm may end the stage after this step: more are to come, and nothing is generated ahead."""
    paused = config.algorithm.max_staleness == 0 or _steps_until_pause(step, config) == 1
    return paused and step < config.algorithm.steps


def _evaluate_and_look(context: StageContext, step: int, phase: Phase) -> dict[str, float]:
    """Evaluate on all questions; the first ones go to the rollout log with maps of where their answers look."""
    evaluation, metrics = context.evaluate_rl(context.prompts.held_out(context.config.evaluation.questions))
    shown = evaluation.rollouts[:SHOWN_QUESTIONS]
    context.residency.train()
    with context.timer.phase("look"):
        views = context.roles.learner.look([rollout.sample() for rollout in shown])
    for rollout in shown:
        context.rollouts.write("rl", step, phase, rollout, views[rollout.completion.id].maps)
    return metrics


def _recorded(rollouts: Sequence[Rollout], groups: int) -> list[Rollout]:
    """Order whole groups: first those with a completion without a verdict, then the others, in prompt order."""
    by_prompt: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        by_prompt.setdefault(rollout.prompt.id, []).append(rollout)
    judged = {id: all(r.reward.status not in NO_VERDICT for r in group) for id, group in by_prompt.items()}
    chosen = sorted(by_prompt, key=lambda id: judged[id])[:groups]
    return [rollout for id in chosen for rollout in by_prompt[id]]


def _resume(context: StageContext, stage: Stage) -> tuple[Checkpoints, int, dict[str, Any]]:
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


def _record_config(context: StageContext) -> None:
    """Write config.yaml once all checks have passed, and print what has changed."""
    for field, old, new in context.folder.record(context.config):
        context.progress.say(f"continuing with {field}={new} (was {old})")


def _save(context: StageContext, checkpoints: Checkpoints, step: int, state: dict[str, Any]) -> None:
    state |= {
        "started_from": context.origin(),
        "phases_s": context.timer.totals(),
        "metric_lines": context.metrics.lines,
        "rollout_lines": context.rollouts.lines,
    }
    context.residency.train()
    with context.timer.phase("checkpoint"):
        checkpoints.save(step, state, lambda folder: context.roles.learner.save(folder / "learner"))


class _StageClock:
    """Wall time of a stage over all its sessions."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self.spent = 0.0

    def total(self) -> float:
        """Return seconds of this session and of those before the last resume."""
        return self.spent + self._clock() - self._start
