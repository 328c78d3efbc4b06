"""Start of one stage: find and check the model to start from, start the roles, run the stage, always end the roles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from ral_system.attention.selection import select_layers
from ral_system.config.algorithm import AlgorithmConfig
from ral_system.config.choices import STAGES, Device, Stage
from ral_system.config.cluster import whole_gpus
from ral_system.config.commands import TrainConfig
from ral_system.config.data import FilesConfig
from ral_system.config.reward import VisualRewardConfig
from ral_system.config.rollout import RolloutConfig
from ral_system.controller.residency import residency
from ral_system.controller.rl import run_rl
from ral_system.controller.stage import StageContext
from ral_system.controller.supervised import run_supervised
from ral_system.data.prompts import Prompts
from ral_system.errors import ConfigError, SetupError
from ral_system.families.family import Family
from ral_system.models.folders import local_model_folder
from ral_system.models.loading import load_family
from ral_system.models.spread import check_layers
from ral_system.observability.metrics import MetricsLog, RolloutLog
from ral_system.observability.progress import PhaseTimer, StageProgress
from ral_system.observability.timeline import CONTROLLER, PeakMemory, SpanLog
from ral_system.protocols import Roles
from ral_system.rollout.servable import check_servable
from ral_system.runs.folder import RunFolder
from ral_system.tasks.open import QuestionSettings, open_prompts
from ral_system.tasks.start_model import new_tiny_model
from ral_system.versions import this_command

StartRoles = Callable[[TrainConfig, Stage, Path, Path], Roles]
"""Maps (config, stage, model folder, run folder) to roles that are ready to work."""


def first_model(config: TrainConfig, folder: RunFolder, stage: Stage, stages: Sequence[Stage]) -> Path:
    """Return the model that `stage` starts from. Raises SetupError when a needed stage has not run.

    It is `start_model` for the first of `stages`, else the preceding stage's result, else the configured model, else a
    new tiny one.
    """
    if config.start_model is not None and stage == stages[0]:
        return local_model_folder("start_model", config.start_model)
    for earlier in reversed(STAGES[: STAGES.index(stage)]):
        if folder.result(earlier) is not None:
            return folder.model(earlier)
    if config.model.path is not None:
        return local_model_folder("model.path", config.model.path)
    if stage != ("sft" if isinstance(config.data, FilesConfig) else "perceive"):
        raise SetupError(
            f"{stage} has no model to start from in {folder.root}: run ral-{STAGES[STAGES.index(stage) - 1]} first, "
            "or set start_model to a model folder, or model.path"
        )
    return new_tiny_model(config.model.tiny, config.data, config.seed, folder)


def check_model(config: TrainConfig, model: Path, stages: Sequence[Stage]) -> str | None:
    """Check, before anything starts, what a stage would refuse in its actors; return a warning where there is one.

    Raises SetupError for a model that the rollout engines of these stages cannot serve, ConfigError for attention that
    cannot be read, and for frozen models with fewer layers than GPUs.
    """
    family = load_family(model)
    if config.rollout.engine == "vllm" and any(stage != "perceive" for stage in stages):  # which starts no engine
        device: Device = "cuda" if config.cluster.gpus_per_rollout else "cpu"
        check_servable(model, family, device, config.rollout.dtype)
    if "rl" not in stages:
        return None
    depth = family.config.get_text_config().num_hidden_layers
    try:
        layers = select_layers(config.algorithm.attention.layers, family.softmax_layers, depth)
    except ValueError as error:
        raise ConfigError(f"model {model}, algorithm.attention: {error}") from error
    if config.starts_reference:
        check_layers("cluster.gpus_per_scorer", whole_gpus(config.cluster.gpus_per_scorer), model, family.config)
    if (gpus := whole_gpus(config.cluster.gpus_per_teacher)) > 1:
        for teacher in config.teachers:
            folder = local_model_folder(teacher.field, teacher.path)
            check_layers("cluster.gpus_per_teacher", gpus, folder, load_family(folder).config)
    return _short_windows(config.algorithm, config.rollout, family, layers)


def _short_windows(
    algorithm: AlgorithmConfig, rollout: RolloutConfig, family: Family, layers: Sequence[int]
) -> str | None:
    """Warn of trained layers whose window is shorter than a sequence; None without one."""
    attention, longest = algorithm.attention, rollout.max_model_len
    distilled = algorithm.distillation.attention.weight > 0
    short = [i for i in layers if family.windows.get(i, longest) < longest]
    if not short or not (attention.weight > 0 or distilled):
        return None
    whole = [i for i in family.softmax_layers if family.windows.get(i, longest) >= longest]
    window, better = family.windows[short[0]], [i for i in layers if i in whole] or whole[-1:]
    remedy = f"algorithm.attention.layers=[{','.join(map(str, better))}], without a window"
    if distilled or not better:  # the last layer is distilled
        remedy = f"rollout.max_model_len={window}"
    given = attention.layers if isinstance(attention.layers, str) else list(attention.layers)
    return (
        f"algorithm.attention.layers={given}: rows of layer {', '.join(map(str, short))} see {window} tokens back, of "
        f"up to rollout.max_model_len={longest}: keys further back get nothing, and a row that sees none of the keys "
        f"that count adds 0 to the attention term; set {remedy}"
    )


def open_metrics(config: TrainConfig, folder: RunFolder) -> MetricsLog:
    """Open the log of one command's stages. W&B gets the configuration, the versions and the command."""
    record = this_command()
    folder.add_command(record)
    return MetricsLog(folder.root, config.logging, config.name, {**config.model_dump(mode="json"), **record})


def run_stage(
    config: TrainConfig,
    folder: RunFolder,
    stage: Stage,
    model: Path,
    start_roles: StartRoles,
    metrics: Callable[[], MetricsLog],
    session: Sequence[Stage],
) -> None:
    """Run one stage to its end, continuing from its newest checkpoint. It logs to `metrics()`, and leaves that open.

    `session` has all stages that this command runs.
    """
    progress = StageProgress(stage, config.algorithm.steps if stage == "rl" else config.supervised(stage).max_steps)
    prompts = open_prompts(QuestionSettings.of(config), model, folder)
    _check_system_turn(config.reward.visual, prompts)
    log = metrics()  # only after the data have been checked
    peaks = PeakMemory(folder.root)
    with (
        RolloutLog(folder.root) as rollouts,
        closing(SpanLog(folder.logs, CONTROLLER, stage=stage)) as spans,
    ):
        roles = start_roles(config, stage, model, folder.root)
        try:
            progress.say(f"attention by {roles.learner.attention_kernel}")
            timer = PhaseTimer(progress.phase, on_end=spans.ended)
            context = StageContext(
                config=config,
                folder=folder,
                model=model.resolve(),
                prompts=prompts,
                roles=roles,
                residency=residency(roles, timer),
                metrics=log,
                rollouts=rollouts,
                timer=timer,
                progress=progress,
                peaks=peaks,
                compares=stage == next((s for s in session if s != "perceive"), None),  # which has no engines
            )
            if stage == "rl":
                run_rl(context)
            else:
                run_supervised(context, stage)
        finally:
            roles.close()


def _check_system_turn(visual: VisualRewardConfig, prompts: Prompts) -> None:
    """Raise ConfigError if the visual-anchored reward would lack the system turn, which a chat template may add."""
    if visual.weight > 0 and visual.form != "laser_pays_length" and not prompts.question("train", 0).system_tokens:
        raise ConfigError(
            f"reward.visual.weight={visual.weight:g} compares attention on pictures with that on the system turn: "
            "data.system_prompt is empty, and the model's chat template adds none; set one, or the weight to 0"
        )
