"""Runs with adapters: over Ray, vLLM and DeepSpeed without a reference process, and continued bit for bit."""

import filecmp
import json
from pathlib import Path

import pytest

from tests.system.placements import trained_alike

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

ADAPTERS = (
    *("experiment=smoke", "stages=[rl]", "learner.learning_rate=1e-2", "learner.warmup_updates=0"),
    "learner.lora={rank: 4, alpha: 8, targets: [q_proj, k_proj, up_proj], vision: false}",  # parts of what vLLM fuses
    *("algorithm.attention.anchor=reference", "algorithm.kl.coefficient=0.1"),
    "algorithm.entropy_coefficient=1",  # random answers earn nothing to learn from
)


SHARDED = ("learner.zero_stage=3", "learner.gradient_checkpointing=true", "algorithm.steps=3", "evaluation.every=0")


def test_adapters_are_trained_by_deepspeed_and_sampled_merged_in_vllm_apart_and_in_turns(
    commands, left, end_of, tiny_model: Path, tmp_path: Path
) -> None:
    """A checkpoint lies between the second step and the third, where engines that take turns lose their weights."""
    one = ("learner.world_size=1", "cluster.cpus_per_rollout=0.25", f"start_model={tiny_model}")
    for run in trained_alike(commands, left, end_of, tmp_path, "ral-train", *ADAPTERS, *SHARDED, *one):
        assert_adapters_were_trained(run, tiny_model)


@pytest.mark.long
@pytest.mark.parametrize("together", [1, 2])
def test_two_ranks_train_adapters(commands, left, tiny_model: Path, tmp_path: Path, together: int) -> None:
    two = (f"learner.sequence_parallel={together}", f"start_model={tiny_model}")
    done = commands("ral-train", *ADAPTERS, *SHARDED, *two, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shared = "" if together == 1 else "; 2 learner ranks to a micro-batch"
    assert f"2 deepspeed ranks, 1 vllm engine{shared}; CPU" in done.stderr  # and no reference
    assert_adapters_were_trained(left(tmp_path / "runs" / "smoke"), tiny_model)


def assert_adapters_were_trained(run, tiny_model: Path) -> None:
    assert not list((run.folder / "logs").glob("reference*"))
    summary, steps = run.summary(), run.rl_steps()
    assert (summary["prompt_id_mismatches"], summary["weight_checksum_failures"]) == (0, 0)
    assert summary["max_abs_logprob_diff"] <= 1e-4
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert steps[0]["attention/divergence_first_update"] == 0 < steps[2]["attention/divergence_first_update"]
    assert 0 < steps[0]["policy/kl"] < steps[2]["policy/kl"]

    from peft import PeftModel

    from ral_system.models.loading import load_model

    start = load_model(tiny_model, dtype="float32")
    assert all(step["gate/tensors_verified"] == len(start.state_dict()) for step in steps)
    merged = PeftModel.from_pretrained(start, str(run.folder / "model" / "adapter")).merge_and_unload().state_dict()
    exported = load_model(run.folder / "model", dtype="float32").state_dict()
    assert all(merged[name].allclose(weight, rtol=1e-5, atol=1e-6) for name, weight in exported.items())


def test_a_continued_run_ends_with_the_same_adapters(commands, left, tiny_model: Path, tmp_path: Path) -> None:
    """The rl stage begins with new ones, on the model that those of sft were merged to."""
    local = (*ADAPTERS, "cluster=local", "cluster.threads_per_process=1", "stages=[sft,rl]", "evaluation.every=0")
    local += (f"start_model={tiny_model}",)
    runs = []
    for name, parts in (("straight", (4,)), ("continued", (2, 4))):
        for steps in parts:
            done = commands("ral-train", *local, f"name={name}", f"algorithm.steps={steps}", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        run = left(tmp_path / "runs" / name)
        runs.append(run)
        saved = list((run.folder / "checkpoints" / "rl").glob("*/learner/weights.safetensors"))
        assert saved and all(file.stat().st_size < 100_000 for file in saved)
        tuned = run.folder / "models" / "sft"
        for model, start in ((tuned, tiny_model), (run.folder / "model", tuned)):
            settings = json.loads((model / "adapter" / "adapter_config.json").read_text())
            assert (settings["r"], settings["lora_alpha"]) == (4, 8)
            assert Path(settings["base_model_name_or_path"]).resolve() == start.resolve()
    straight, continued = runs
    assert straight.weights("models/sft") == continued.weights("models/sft")
    for once, again in zip(straight.timeless_metrics(), continued.timeless_metrics(), strict=True):
        shared = once.keys() & again.keys()  # one of them evaluates after step 2
        assert {name: once[name] for name in shared} == {name: again[name] for name in shared}
    assert straight.weights() == continued.weights()
    one, other = (run.folder / "model" / "adapter" / "adapter_model.safetensors" for run in runs)
    assert filecmp.cmp(one, other, shallow=False)
    done = commands("ral-train", *local, "name=straight", "algorithm.steps=5", "learner.lora.rank=2", cwd=tmp_path)
    assert done.returncode == 2 and "learner.lora.rank" in done.stderr, done.stderr
