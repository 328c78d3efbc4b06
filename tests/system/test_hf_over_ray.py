"""Transformers engines over Ray: a run is the one in a single process, and a group's pieces are those of the group."""

from pathlib import Path

import pytest

from ral_system.models.loading import load_model
from ral_system.tasks.visual_search import words
from tests.gemma3_model import build_gemma3

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    "ends", [pytest.param((4,), id="straight"), pytest.param((2, 4), id="continued", marks=pytest.mark.long)]
)
def test_a_run_over_ray_repeats_the_one_in_one_process(
    commands, left, with_signal, uninterrupted, tmp_path: Path, ends: tuple[int, ...]
) -> None:
    """Bit for bit, also if it ends after two steps and goes on with new processes."""
    over_ray = ("cluster=ray", "rollout=hf", "learner=torch")
    rl = [override for override in with_signal if override != "cluster=local" and not override.startswith("sft.")]
    start = f"start_model={uninterrupted.folder / 'models' / 'sft'}"
    for steps in ends:
        settings = (*rl, *over_ray, start, "evaluation.every=0", f"algorithm.steps={steps}")
        done = commands("ral-rl", *settings, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "1 torch rank, 1 hf engine" in done.stderr
    run = left(tmp_path / "runs" / "smoke")
    run.assert_no_prompt_lost_or_repeated()
    summary = run.summary()
    assert (summary["prompt_id_mismatches"], summary["weight_checksum_failures"]) == (0, 0)
    assert {"generate", "load_weights"} <= summary["peak_gib"]["rollout_0"].keys()
    assert run.weights() == uninterrupted.weights()
    trained, expected = (
        [line for line in of.timeless_metrics() if line["stage"] == "rl" and "prompts/first" in line]
        for of in (run, uninterrupted)
    )
    for ours, theirs in zip(trained, expected, strict=True):
        assert ours["gate/tensors_verified"] > 0 and ours["gate/log_prob_diff_max"] <= 1e-4
        names = {name for name in ours if not name.startswith("eval/")}
        assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}


@pytest.mark.long
def test_a_model_that_vllm_computes_differently_is_trained_by_deepspeed(commands, left, tmp_path: Path) -> None:
    """Gemma 3 on a CPU: trained with two transformers engines and two ranks under ZeRO-3."""
    build_gemma3(tmp_path / "start", words())
    run_of = (
        *("experiment=smoke", "stages=[rl]", f"start_model={tmp_path / 'start'}", "algorithm.steps=2"),
        *("evaluation.every=0", "evaluation.questions=2", "rollout.max_model_len=512", "rollout.max_new_tokens=8"),
        *("learner.zero_stage=3", "learner.gradient_checkpointing=true", "learner.learning_rate=1e-3"),
        *("learner.warmup_updates=0", "algorithm.attention.anchor=reference", "algorithm.kl.coefficient=0.1"),
        *("algorithm.attention.layers=all", "algorithm.entropy_coefficient=1"),  # random answers earn nothing
    )
    engines = ("rollout=hf", "rollout.workers=2", "cluster.cpus_per_rollout=0.25")
    done = commands("ral-train", *run_of, *engines, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 deepspeed ranks, 2 hf engines" in done.stderr
    run = left(tmp_path / "runs" / "smoke")
    run.assert_no_prompt_lost_or_repeated()
    summary, steps = run.summary(), run.rl_steps()
    assert (summary["prompt_id_mismatches"], summary["weight_checksum_failures"]) == (0, 0)
    assert summary["max_abs_logprob_diff"] <= 1e-4
    assert [step["step"] for step in steps] == [1, 2]
    assert steps[0]["attention/divergence_first_update"] == 0 < steps[1]["attention/divergence_first_update"]
    began, ended = (load_model(at, dtype="float32").state_dict() for at in (tmp_path / "start", run.folder / "model"))
    assert any(not ended[name].equal(weight) for name, weight in began.items() if "vision_tower" in name)
    assert not ended["lm_head.weight"].equal(began["lm_head.weight"])
