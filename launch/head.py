"""The first lines of a run: what runs, on what, where."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ral_system.config.algorithm import AlgorithmConfig
from ral_system.config.choices import STAGES, Stage
from ral_system.config.commands import TrainConfig
from ral_system.config.model import ModelConfig
from ral_system.config.supervised import SupervisedConfig
from ral_system.runs.folder import RunFolder


def run_head(
    config: TrainConfig, folder: RunFolder, stages: Sequence[Stage], unfinished: Sequence[Stage], *, continues: bool
) -> str:
    """Format the header of a run's log. `continues`: the folder existed before. `unfinished`: stages with work to do.

    Example:
        16:39:03 run      /data/runs/quickstart (new)
                 model    new tiny model, 4 layers of width 192
                 cluster  ray: 2 vllm engines, 2 deepspeed ranks, 1 reference; 8 GPUs
                 rl       40 steps of 16 prompts × 8 completions, 4 updates each
    """
    lines = [
        ("run", f"{folder.root} ({'continues' if continues else 'new'})"),
        ("model", _model(config.start_model, config.model, folder, stages)),
        ("cluster", _cluster(config, stages)),
        *((stage, _work(config.of_stage(stage)) if stage in unfinished else "done") for stage in stages),
    ]
    width = max(len(name) for name, _ in lines)
    indent = " " * len("HH:MM:SS ")
    block = f"\n{indent}".join(f"{name:{width}}  {text}" for name, text in lines)
    return f"{datetime.now():%H:%M:%S} {block}"


def _model(start_model: str | None, model: ModelConfig, folder: RunFolder, stages: Sequence[Stage]) -> str:
    if start_model is not None:
        return start_model
    earlier = [stage for stage in STAGES[: STAGES.index(stages[0])] if folder.result(stage)]
    if earlier:
        return f"{folder.model(earlier[-1])}, from {earlier[-1]}"
    tiny = model.tiny
    knows = "" if tiny.tokenizer is None else f", with the tokenizer of {tiny.tokenizer}"
    return model.path or f"new tiny model, {tiny.layers} layers of width {tiny.hidden}{knows}"


def _cluster(config: TrainConfig, stages: Sequence[Stage]) -> str:
    cluster, learner, rollout = config.cluster, config.learner, config.rollout
    if cluster.kind == "local":
        return f"local: one process, {rollout.engine} engine, {learner.engine} learner"
    rl, answers = "rl" in stages, any(stage != "perceive" for stage in stages)
    roles = [
        (learner.world_size, f"{learner.engine} rank", cluster.gpus_per_learner),
        (rollout.workers if answers else 0, f"{rollout.engine} engine", cluster.gpus_per_rollout),
        (cluster.scorers if rl and config.starts_reference else 0, "reference", cluster.gpus_per_scorer),
        (len(config.teachers) if rl else 0, "teacher", cluster.gpus_per_teacher),
    ]
    together = learner.world_size // learner.shards
    used = ", ".join(f"{count} {role}{'s' if count > 1 else ''}" for count, role, _ in roles if count)
    gpus = sum(count * each for count, _, each in (roles[:1] if cluster.placement == "colocated" else roles))
    shared = f"; {together} learner ranks to a micro-batch" if together > 1 else ""
    where = f" at {cluster.address}" if cluster.address else ""
    return f"ray{where}: {used}{shared}; {f'{gpus:g} GPUs' if gpus else 'CPU'}"


def _work(settings: AlgorithmConfig | SupervisedConfig) -> str:
    if isinstance(settings, SupervisedConfig):
        cast = "" if settings.autocast == "none" else f", autocast {settings.autocast}"
        return f"up to {_count(settings.max_steps, 'step')} of {_count(settings.batch, 'demonstration')}{cast}"
    a = settings
    batch = f"{a.prompts_per_step} prompts × {a.completions_per_prompt} completions"
    return f"{_count(a.steps, 'step')} of {batch}, {_count(a.updates_per_batch, 'update')} each"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
