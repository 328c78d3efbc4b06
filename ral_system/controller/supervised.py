"""The stages perceive and sft: they imitate demonstrations."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from ral_system.config.choices import Stage, SupervisedStage
from ral_system.controller.agreement import check_agreement
from ral_system.controller.stage import StageClock, StageContext, resume, save
from ral_system.runs.folder import RunFolder
from ral_system.tasks.open import media_ahead
from ral_system.training.plan import plan_updates
from ral_system.types import TrainPlan


def run_supervised(context: StageContext, stage: SupervisedStage) -> None:
    """Imitate demonstrations until the held-out score reaches `stop_at` or the steps run out; keep the best model.

    The score is caption token accuracy for perceive, and the accuracy of greedy answers for sft.
    """
    config, learner = context.config, context.roles.learner
    settings = config.supervised(stage)
    clock = StageClock()
    checkpoints, step, state = resume(context, stage)
    clock.spent = state.get("wall_s", 0.0)
    score, best = state.get("score", 0.0), Best(**state["best"]) if "best" in state else None
    if context.compares and step < settings.max_steps and score < settings.stop_at:
        check_agreement(context, step, temperature=1.0)

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
            context.log(stage, step, metrics | context.timer.drain())
            progress.update(step, metrics)
            if saves or score >= settings.stop_at:
                kept = {"best": asdict(best)} if best is not None else {}
                save(context, checkpoints, step, {"score": score, "wall_s": clock.total(), **kept})
                _drop_all_but(context.folder, stage, best)
        if best is None:  # killed before any evaluation, and continued with no more steps to go
            score, best, metrics = _evaluate_and_keep(context, stage, step, None)
            context.log(stage, step, metrics | context.timer.drain())
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
