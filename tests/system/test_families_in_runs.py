"""Every family is trained over Ray, vLLM and DeepSpeed, on pictures and videos, and its gates hold."""

from pathlib import Path

import pytest

from ral_system.models.loading import load_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

RUN = (
    *("experiment=smoke", "stages=[rl]", "algorithm.steps=2", "evaluation.every=0", "evaluation.questions=2"),
    *("data=looking", "data.families=[search,needle]", "data.difficulty=1"),
    *("learner.zero_stage=3", "learner.gradient_checkpointing=true"),
    *("learner.learning_rate=1e-3", "learner.warmup_updates=0"),
    *("algorithm.attention.anchor=reference", "algorithm.kl.coefficient=0.1"),
    "algorithm.entropy_coefficient=1",  # random answers earn nothing to learn from
)
BFLOAT16 = (
    *("rollout.dtype=bfloat16", "rollout.log_prob_gate={token: 2, outliers: 0.001, mean: 0.1, p999: 1}"),
    "algorithm.attention.layers=all",
)


@pytest.mark.parametrize(
    "family", ["qwen3", pytest.param("qwen3_5", marks=pytest.mark.long), pytest.param("glm4v", marks=pytest.mark.long)]
)
def test_pictures_and_videos_are_trained_on(
    commands, left, request: pytest.FixtureRequest, tmp_path: Path, family: str
) -> None:
    start = request.getfixturevalue(f"{family}_folder")
    own, gap, rounding = ((), 1e-4, 0.0)
    if family == "qwen3_5":  # vLLM on CPU has bfloat16 only; responses of a group are padded to the longest in a pass
        own, gap, rounding = BFLOAT16, 0.2, 1e-12
    done = commands("ral-train", *RUN, *own, f"start_model={start}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 deepspeed ranks, 1 vllm engine" in done.stderr
    run = left(tmp_path / "runs" / "smoke")
    run.assert_no_prompt_lost_or_repeated()
    summary, steps = run.summary(), run.rl_steps()
    assert (summary["prompt_id_mismatches"], summary["weight_checksum_failures"]) == (0, 0)
    assert summary["max_abs_logprob_diff"] <= gap
    assert [step["step"] for step in steps] == [1, 2]
    kinds = {row["kind"] for row in run.lines("rollouts.jsonl")}
    assert kinds == {"search_1", "needle_1"}  # pictures, and videos
    assert steps[0]["attention/divergence_first_update"] <= rounding < steps[1]["attention/divergence_first_update"]
    began, ended = (load_model(folder, dtype="float32").state_dict() for folder in (start, run.folder / "model"))
    assert all(step["gate/tensors_verified"] == len(began) for step in steps)
    assert any(not ended[name].equal(weight) for name, weight in began.items() if "visual" in name)
