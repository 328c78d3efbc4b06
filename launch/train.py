"""`ral-train`: perceive, sft and rl, one after the other; `ral-perceive`, `ral-sft` and `ral-rl`: one of them.

Joins the controller with the roles that `cluster=` asks for, in process or on Ray. Interrupted runs continue with the
same command.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from ral_system.config.choices import STAGES, Stage
from ral_system.config.cluster import ClusterConfig
from ral_system.config.combinations import problems
from ral_system.config.commands import TrainConfig
from ral_system.config.data import FilesConfig
from ral_system.config.validate import warnings
from ral_system.data.sources.hub import check_sources
from ral_system.errors import AlarmError, ConfigError, GateError
from ral_system.launch.cli import run_with_config
from ral_system.launch.head import run_head
from ral_system.launch.refused import leaving_nothing
from ral_system.models.folders import check_family, check_named, check_tokenizer_folder, names_folder
from ral_system.runs.folder import RunFolder

if TYPE_CHECKING:
    from ral_system.controller.start import StartRoles

_TRAIN = """
ral-train: train a vision-language model with Reinforced Attention Learning: perceive, sft, rl and a report.
Without an experiment it trains the tiny model with all defaults.
  ral-train experiment=quickstart                     the whole system on two CPU cores, in minutes
  ral-train experiment=video_r1_qwen2_5_vl_7b_8gpu data.sources.main.path=rows.json       your own questions
  ral-train experiment=smoke                          every role for a few steps, in a minute or two
  ral-train experiment=smoke cluster=local            one process: no Ray, vLLM or DeepSpeed
  ral-train experiment=quickstart algorithm.attention.weight=4 name=ral_weight4
  ral-train -m experiment=smoke cluster=local algorithm=ral,grpo seed=0,1     four runs, each in its own folder
  ray job submit --address http://127.0.0.1:8265 -- ral-train experiment=quickstart runs_dir=/shared/runs
"""
_RUN = """
ral-perceive, ral-sft and ral-rl run one stage each, starting from the previous stage in the same run folder.
A run writes to runs_dir/name: config.yaml, metrics.jsonl, rollouts.jsonl, report.html, summary.json, model/, logs/.
The same command again continues a run that was interrupted.
"""
_PERCEIVE = """
ral-perceive: run only the first stage, which learns to see by captioning generated pictures.
  ral-perceive experiment=quickstart
  ral-perceive experiment=quickstart perceive.max_steps=2000 name=sees_better
"""
_SFT = """
ral-sft: run only the cold start, which imitates demonstrations, from the perceive model or start_model.
  ral-sft experiment=quickstart
  ral-sft experiment=quickstart start_model=runs/quickstart/models/perceive name=sft_again sft.learning_rate=1e-3
"""
_RL = """
ral-rl: run only the RL stage, from the run's sft model, start_model or model.path, and write a report.
  ral-rl experiment=quickstart algorithm=grpo start_model=runs/quickstart/models/sft name=grpo
  ral-rl -m experiment=quickstart start_model=runs/quickstart/models/sft algorithm.attention.weight=0.5,1,2
"""


def main() -> None:
    """Run the configured stages, by default perceive, sft and rl."""
    run_with_config(run_stages, TrainConfig, about=_TRAIN + _RUN)


def perceive() -> None:
    """Learn to see by dense captioning."""
    run_with_config(partial(run_stages, stages=("perceive",)), TrainConfig, about=_PERCEIVE + _RUN)


def sft() -> None:
    """Run the think-and-answer cold start."""
    run_with_config(partial(run_stages, stages=("sft",)), TrainConfig, about=_SFT + _RUN)


def rl() -> None:
    """Run Reinforced Attention Learning from a cold-started model."""
    run_with_config(partial(run_stages, stages=("rl",)), TrainConfig, about=_RL + _RUN)


def run_stages(config: TrainConfig, stages: Sequence[Stage] = ()) -> float | None:
    """Run the given stages, by default `config.stages`, skipping those that are complete; return the last one's
    held-out accuracy. Heavy imports happen here, after parsing.
    """
    if stages and (found := [*problems(config.model_copy(update={"stages": tuple(stages)}))]):
        raise ConfigError(*found)  # what config.stages has was checked with the rest
    stages = stages or config.stages
    from ral_system.observability.quiet import silence_third_party

    silence_third_party()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while idle slow a shared machine tenfold
    here = config.cluster.kind == "local" or not (config.cluster.address or os.environ.get("RAY_ADDRESS"))
    if here and config.reward.foreign:  # a mistake in it must not surface after an hour of perceive
        from ral_system.rewards.pool import check_loads

        check_loads(config.reward, config.algorithm.response_format)
    if config.rollout.weight_transfer is not None:  # null suits every run; to look at another imports torch
        from ral_system.weights.transfer.opening import configured_transfer

        configured_transfer(config.rollout, config.algorithm, config.cluster)
    for warning in warnings(config):
        print(f"warning: {warning}", file=sys.stderr)
    folder = RunFolder((Path(config.runs_dir) / config.name).resolve())
    _refuse_another_start(config.start_model, folder, stages[0])
    named = _named_models(config, folder, stages)
    for field, name in named:
        check_named(field, name)
    continues = folder.config.is_file()
    with leaving_nothing(folder.root):
        folder.open(config)  # before the slow imports, so a refusal is quick
        unfinished = [stage for stage in stages if not folder.finished(stage, config.of_stage(stage))]
        if unfinished:
            _check_contents(config, named)
            print(run_head(config, folder, stages, unfinished, continues=continues), file=sys.stderr, flush=True)
        _run(config, folder, stages, unfinished)
    result = folder.result(stages[-1]) or {}
    return result.get("held_out_accuracy", result.get("held_out_score"))  # of rl; of a supervised stage


def _refuse_another_start(start_model: str | None, folder: RunFolder, first: Stage) -> None:
    """Raise ConfigError for a `start_model` other than the one that a complete first stage started from.

    Nothing would read it. An incomplete stage is refused when it loads its checkpoint.
    """
    started_from = (folder.result(first) or {}).get("start_model")  # runs of earlier versions do not say
    if start_model is None or started_from is None or names_folder(start_model, folder.root / started_from):
        return
    raise ConfigError(
        f"start_model={start_model}: {first} in {folder.root} is complete, and started from "
        f"{folder.root / started_from}; set start_model to that to continue, or set another name"
    )


def _named_models(config: TrainConfig, folder: RunFolder, stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """Return field and value of each model that is named and needed: a wrong one is refused within a second, and not
    after hours of training. Raises SetupError for a tokenizer that is not there.
    """
    named: list[tuple[str, str]] = []
    if folder.result(stages[0]) is None:
        first = not any(map(folder.result, STAGES[: STAGES.index(stages[0])]))
        if config.start_model is not None:
            named.append(("start_model", config.start_model))
        elif config.model.path is not None and first:
            named.append(("model.path", config.model.path))
        elif config.model.tiny.tokenizer is not None and first:
            check_tokenizer_folder("model.tiny.tokenizer", config.model.tiny.tokenizer)
    named += [(teacher.field, teacher.path) for teacher in config.teachers if "rl" in stages]
    return named


def _check_contents(config: TrainConfig, named: Sequence[tuple[str, str]]) -> None:
    """Refuse files that are not there and models of unknown families, before a model is downloaded or anything else
    starts.
    """
    if isinstance(config.data, FilesConfig):
        check_sources(config.data.sources)
    for field, name in named:
        check_family(field, name)


def _run(config: TrainConfig, folder: RunFolder, stages: Sequence[Stage], unfinished: Sequence[Stage]) -> None:
    from ral_system.controller.start import check_model, first_model, open_metrics, run_stage
    from ral_system.models.folders import local_model_folder
    from ral_system.observability.timeline import write_trace
    from ral_system.report.write import write_run_report
    from ral_system.runs.checkpoint import Checkpoints
    from ral_system.runs.summary import write_summary

    began = time.monotonic()
    summarise = partial(write_summary, folder, name=config.name, algorithm=config.algorithm.name, seed=config.seed)
    for teacher in config.teachers if "rl" in stages else ():
        local_model_folder(teacher.field, teacher.path)  # a wrong hub name must not surface after hours of training
    if unfinished:
        first = first_model(config, folder, unfinished[0], stages)
        if warning := check_model(config, first, unfinished):
            print(f"warning: {warning}", file=sys.stderr)
    with ExitStack() as logs:
        metrics = cache(lambda: logs.enter_context(open_metrics(config, folder)))  # all stages are one W&B run
        for stage in stages:
            if stage in unfinished:
                try:
                    model = first_model(config, folder, stage, stages)
                    run_stage(config, folder, stage, model, role_factory(config.cluster), metrics, unfinished)
                except (GateError, AlarmError) as error:
                    summarise(failed=error if isinstance(error, GateError) else None)
                    write_run_report(folder.root, config.cluster.media_cache_gib)
                    raise
            # Also when the stage was complete already: the run may have been killed just before this.
            for earlier in STAGES[: STAGES.index(stage)]:
                Checkpoints(folder.checkpoints / earlier, config.checkpoint.keep).clear()
            Checkpoints(folder.checkpoints / stage, config.checkpoint.keep).prune(1)  # to train more steps later
            summarise()
            write_run_report(folder.root, config.cluster.media_cache_gib)
            write_trace(folder.root)
    if unfinished:
        print(f"{folder.root}/report.html, summary.json and model/ are written ({time.monotonic() - began:.0f} s)")
    else:
        steps = ", ".join(f"{stage} ended at step {folder.steps(stage)}" for stage in stages)
        more = "algorithm.steps" if "rl" in stages else f"{stages[-1]}.max_steps"
        print(f"{folder.root}: nothing to do, {steps}; raise {more} to train on")


def role_factory(cluster: ClusterConfig) -> StartRoles:
    """Return the class that starts a stage's roles on the configured cluster."""
    if cluster.kind == "local":
        from ral_system.in_process import InProcessRoles

        return InProcessRoles
    from ral_system.actors.roles import RayRoles

    return RayRoles


if __name__ == "__main__":
    main()
