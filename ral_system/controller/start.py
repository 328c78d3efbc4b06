"""Starts one stage: finds the model to start from, starts the roles, runs it, ends the roles whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ral_system.config.schema import RunConfig, Stage
from ral_system.controller.run_folder import STAGES, RunFolder
from ral_system.controller.stages import StageContext, run_rl, run_supervised
from ral_system.data import visual_search
from ral_system.data.chat import ChatRenderer
from ral_system.data.media import MediaStore
from ral_system.data.prompts import VisualSearchPrompts
from ral_system.errors import SetupError
from ral_system.models.loading import check_model_folder, load_processor
from ral_system.models.tiny import build_tiny_model
from ral_system.observability.metrics import MetricsLog, RolloutLog
from ral_system.observability.progress import PhaseTimer, StageProgress
from ral_system.protocols import Roles

StartRoles = Callable[[RunConfig, Stage, Path, Path], Roles]
"""(config, stage, model folder, run folder) → roles, ready to work."""


def first_model(config: RunConfig, folder: RunFolder, stage: Stage, stages: Sequence[Stage]) -> Path | str:
    """Where `stage` starts from: `start_model` for the first of `stages`, else the preceding stage's result, else the
    configured model, else a new tiny one. Raises SetupError when a needed stage has not run.
    """
    if config.start_model is not None and stage == stages[0]:
        check_model_folder(Path(config.start_model))
        return Path(config.start_model)
    for earlier in reversed(STAGES[: STAGES.index(stage)]):
        if folder.result(earlier) is not None:
            return folder.model(earlier)
    if config.model.path is not None:
        check_model_folder(config.model.path)
        return config.model.path
    if stage != "perceive":
        raise SetupError(
            f"{stage} has no model to start from in {folder.root}: run ral-{STAGES[STAGES.index(stage) - 1]} first, "
            "or set start_model to a model folder, or model.path"
        )
    if not (folder.start_model / "processor_config.json").is_file():
        tiny = config.model.tiny
        build_tiny_model(
            folder.start_model,
            visual_search.words(),
            hidden=tiny.hidden,
            layers=tiny.layers,
            vision_layers=tiny.vision_layers,
            seed=config.seed,
        )
    return folder.start_model


def run_stage(config: RunConfig, folder: RunFolder, stage: Stage, model: Path | str, start_roles: StartRoles) -> None:
    """Run one stage to its end, continuing from its newest checkpoint."""
    progress = StageProgress(stage, config.algorithm.steps if stage == "rl" else getattr(config, stage).max_steps)
    prompts = VisualSearchPrompts(
        config.data,
        ChatRenderer(load_processor(model), config.data.system_prompt),
        MediaStore(folder.media),
        format=config.algorithm.response_format,
    )
    with (
        MetricsLog(folder.root, config.logging, config.name, config.model_dump(mode="json")) as metrics,
        RolloutLog(folder.root) as rollouts,
    ):
        roles = start_roles(config, stage, Path(model), folder.root)
        try:
            context = StageContext(
                config=config,
                folder=folder,
                prompts=prompts,
                roles=roles,
                metrics=metrics,
                rollouts=rollouts,
                timer=PhaseTimer(progress.phase),
                progress=progress,
            )
            if stage == "rl":
                run_rl(context)
            else:
                run_supervised(context, stage)
        finally:
            roles.close()
