from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ral_system.config.commands import TrainConfig
from ral_system.launch.head import run_head
from ral_system.runs.folder import RunFolder


def head(make_config: Callable[..., TrainConfig], folder: Path, *overrides: str, continues: bool = False) -> list[str]:
    config = make_config(*overrides)
    unfinished = [stage for stage in config.stages if not RunFolder(folder).finished(stage, config.of_stage(stage))]
    text = run_head(config, RunFolder(folder), config.stages, unfinished, continues=continues)
    assert re.match(r"\d\d:\d\d:\d\d run ", text)
    return [" ".join(line.split()) for line in text[len("HH:MM:SS ") :].splitlines()]


def test_a_run_says_what_runs_on_what(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    assert head(make_config, tmp_path, "experiment=smoke") == [
        f"run {tmp_path} (new)",
        "model new tiny model, 2 layers of width 64",
        "cluster local: one process, hf engine, torch learner",
        "perceive up to 4 steps of 8 demonstrations",
        "sft up to 4 steps of 8 demonstrations",
        "rl 4 steps of 4 prompts × 4 completions, 2 updates each",
    ]
    given = head(make_config, tmp_path, "experiment=smoke", "model.tiny.tokenizer=/qwen")
    assert given[1] == "model new tiny model, 2 layers of width 64, with the tokenizer of /qwen"


def test_devices_are_counted(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    run = ("cluster=ray", "rollout=vllm", "learner=deepspeed", "stages=[rl]", "start_model=/models/m")
    gpus = (
        "cluster.gpus_per_rollout=2",
        "cluster.gpus_per_learner=1",
        "cluster.gpus_per_scorer=1",
        "rollout.workers=2",
        "rollout.tensor_parallel=2",
    )
    lines = head(make_config, tmp_path, "experiment=smoke", *run, *gpus, "learner.world_size=2")
    assert lines[1:3] == [
        "model /models/m",
        "cluster ray: 2 deepspeed ranks, 2 vllm engines, 1 reference; 7 GPUs",
    ]
    turns = ("cluster.placement=colocated", "rollout.workers=1")
    lines = head(make_config, tmp_path, "experiment=smoke", *run, *gpus, *turns, "learner.world_size=2")
    assert lines[2] == "cluster ray: 2 deepspeed ranks, 1 vllm engine, 1 reference; 2 GPUs"
    lines = head(make_config, tmp_path, "experiment=smoke", *run, *gpus, "cluster.scorers=2")
    assert lines[2] == "cluster ray: 2 deepspeed ranks, 2 vllm engines, 2 references; 8 GPUs"
    together = ("learner.world_size=4", "learner.sequence_parallel=2")
    assert "; 2 learner ranks to a micro-batch; 9 GPUs" in head(make_config, tmp_path, *run, *gpus, *together)[2]
    assert "; CPU" in head(make_config, tmp_path, "experiment=smoke", *run)[2]
    assert head(make_config, tmp_path, "cluster=ray", "stages=[perceive]")[2] == "cluster ray: 2 deepspeed ranks; CPU"


def test_a_run_that_goes_on_says_what_is_done(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.complete("sft", {"steps": 4, "held_out_score": 0.5}, lambda partial: None)
    lines = head(make_config, tmp_path, "experiment=smoke", "stages=[sft,rl]", continues=True)
    assert lines[0] == f"run {tmp_path} (continues)"
    assert "sft done" in lines
    assert head(make_config, tmp_path, "experiment=smoke", "stages=[rl]")[1] == f"model {tmp_path}/models/sft, from sft"


def test_a_finished_stage_that_is_asked_for_more_is_not_done(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    folder.complete("rl", {"steps": 4}, lambda partial: None)
    (folder.checkpoints / "rl" / "step_000004").mkdir(parents=True)
    more = ("experiment=smoke", "stages=[rl]", "algorithm.steps=6", "algorithm.passes_per_step=3")
    lines = head(make_config, tmp_path, *more, continues=True)
    assert lines[-1] == "rl 6 steps of 4 prompts × 4 completions, 6 updates each"
    assert "1 step of" in head(make_config, tmp_path / "new", "experiment=smoke", "algorithm.steps=1")[-1]
