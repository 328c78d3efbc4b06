"""The stage rl: evaluate, train, evaluate again. `loop` has one step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from ral_system.alarms.watch import Alarms
from ral_system.controller.agreement import check_agreement
from ral_system.controller.judging import NO_VERDICT, missing_verdicts
from ral_system.controller.loop import TrainingLoop
from ral_system.controller.pauses import Pauses
from ral_system.controller.pipeline import PipelinedLoop
from ral_system.controller.stage import StageClock, StageContext, resume, save
from ral_system.controller.totals import add_to_totals, mean_contrast, said_of_contrast
from ral_system.errors import AlarmError
from ral_system.evaluation.blind import blind_gap
from ral_system.evaluation.greedy import Evaluation
from ral_system.media.store import MediaStore
from ral_system.observability.metrics import Phase
from ral_system.report.background import ReportWriter
from ral_system.runs.checkpoint import Checkpoints
from ral_system.tasks.open import media_ahead, train_prompts
from ral_system.types import Prompt, Rollout

SHOWN_QUESTIONS = 10
"""Held-out questions whose attention is drawn in the report before and after RL: two of each kind."""


def run_rl(context: StageContext) -> None:
    """Evaluate, train for `algorithm.steps` steps, evaluate again; look at the same pictures before and after."""
    config = context.config
    clock = StageClock()
    checkpoints, step, state = resume(context, "rl")
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
    clock: StageClock,
) -> dict[str, Any]:
    """Train from `step` to the end, and return the stage's result."""
    config = context.config
    steps, evaluate_every = config.algorithm.steps, config.evaluation.every
    pauses = Pauses(steps, config.checkpoint.every, evaluate_every, config.algorithm.max_staleness)
    loop.version, loop.next_prompt = state.get("version", 0), state.get("next_prompt", 0)
    clock.spent = state.get("wall_s", 0.0)
    totals: dict[str, float] = state.get("totals", {})
    before: dict[str, float] | None = state.get("before")
    if context.compares and step < steps:
        check_agreement(context, loop.version, config.rollout.temperature)
    loop.publish()

    reports = ReportWriter(context.folder.root, config.cluster.media_cache_gib)
    with context.progress as progress, closing(loop), reports:
        if before is None:
            before = _evaluate_and_look(context, 0, "before_rl")
            save(context, checkpoints, 0, {"before": before, "wall_s": clock.total()})
        attention = config.algorithm.attention
        alarms = Alarms(
            config.alarms,
            loop.weights,
            state.get("alarms"),
            before=before,
            compares_looks=attention.compares_looks,
            target_share=attention.target_gradient_share,
        )
        progress.update(step, before)
        while step < steps:
            step += 1
            result = loop.step(until_pause=pauses.steps_until(step))
            metrics = result.metrics
            if evaluate_every and step % evaluate_every == 0 and step < steps:
                metrics |= _evaluate(context, context.prompts.held_out(config.evaluation.every_questions))[1]
                metrics |= context.timer.drain()
            for line in (*alarms.check(result.rollouts, metrics), *(said_of_contrast(metrics) if step == 1 else ())):
                progress.say(line)
            totals |= add_to_totals(totals, metrics)
            _log(context, step, result.rollouts, metrics)
            stops = alarms.stopping() if pauses.may_stop(step) else None
            if step % config.checkpoint.every == 0 or step == steps or stops:
                kept = {"version": loop.version, "next_prompt": loop.next_prompt, "before": before, "totals": totals}
                save(context, checkpoints, step, kept | {"alarms": alarms.state(), "wall_s": clock.total()})
            if step % config.logging.report_every == 0:
                reports.request()
            if stops:
                raise AlarmError(f"{stops}; step {step} is saved")
        after = _evaluate_and_look(context, step, "after_rl")
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


def _log(context: StageContext, step: int, rollouts: Sequence[Rollout], metrics: dict[str, float]) -> None:
    """Write down a step: its metrics, some groups with their texts, and the progress line."""
    if (missing := missing_verdicts(rollouts)) is not None:
        context.progress.warn(missing)
    context.log("rl", step, metrics)
    for rollout in _recorded(rollouts, context.config.logging.groups_per_step):
        context.rollouts.write("rl", step, "train", rollout)
    context.progress.update(step, metrics)


def _evaluate(context: StageContext, prompts: list[Prompt]) -> tuple[Evaluation, dict[str, float]]:
    """Evaluate, with `evaluation.blind` also what pictures add; the metrics of both."""
    found = context.evaluate(prompts)
    if not context.config.evaluation.blind:
        return found, found.metrics()
    return found, found.metrics() | blind_gap(found, context.evaluate, MediaStore(context.folder.media))


def _evaluate_and_look(context: StageContext, step: int, phase: Phase) -> dict[str, float]:
    """Evaluate on all questions; the first ones go to the rollout log with maps of where their answers look."""
    evaluation, metrics = _evaluate(context, context.prompts.held_out(context.config.evaluation.questions))
    shown = evaluation.rollouts[:SHOWN_QUESTIONS]
    context.residency.train()
    with context.timer.phase("look"):
        views = context.roles.learner.look([rollout.sample() for rollout in shown])
    for rollout in shown:
        context.rollouts.write("rl", step, phase, rollout, views[rollout.completion.id].maps)
    context.log("rl", step, metrics | context.timer.drain())
    return metrics


def _recorded(rollouts: Sequence[Rollout], groups: int) -> list[Rollout]:
    """Order whole groups: first those with a completion without a verdict, then the others, in prompt order."""
    by_prompt: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        by_prompt.setdefault(rollout.prompt.id, []).append(rollout)
    judged = {id: all(r.reward.status not in NO_VERDICT for r in group) for id, group in by_prompt.items()}
    chosen = sorted(by_prompt, key=lambda id: judged[id])[:groups]
    return [rollout for id in chosen for rollout in by_prompt[id]]
