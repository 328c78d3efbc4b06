"""A whole run of Qwen3.5 in one process, in float32, with a frozen encoder, adapters and attention of all layers."""

import json
from pathlib import Path

import pytest

from ral_system.models.loading import load_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

RUN = (
    *("experiment=smoke", "cluster=local", "stages=[rl]", "algorithm.steps=2", "evaluation.every=0"),
    *("evaluation.questions=2", "data=looking", "data.families=[search,needle]", "data.difficulty=1"),
    *("rollout.max_new_tokens=6", "rollout.max_model_len=512", "algorithm.prompts_per_step=4"),
    *("algorithm.attention.layers=all", "algorithm.attention.weight=5", "algorithm.entropy_coefficient=1"),
    *("learner.learning_rate=1e-2", "learner.warmup_updates=0"),
    "learner.lora={rank: 2, alpha: 4, targets: [q_proj, in_proj_qkv, in_proj_a, out_proj], vision: false}",
)


@pytest.mark.long
def test_attention_is_trained_where_it_is_softmax(commands, left, qwen3_5_folder: Path, tmp_path: Path) -> None:
    done = commands("ral-train", *RUN, f"start_model={qwen3_5_folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = left(tmp_path / "runs" / "smoke")
    run.assert_no_prompt_lost_or_repeated()
    summary, steps = run.summary(), run.rl_steps()
    assert (summary["prompt_id_mismatches"], summary["weight_checksum_failures"]) == (0, 0)
    assert summary["max_abs_logprob_diff"] <= 1e-4
    assert {row["kind"] for row in run.lines("rollouts.jsonl")} == {"search_1", "needle_1"}  # pictures, and videos
    assert steps[0]["attention/divergence_first_update"] <= 1e-12 < steps[1]["attention/divergence"]
    began, ended = (
        load_model(folder, dtype="float32").state_dict() for folder in (qwen3_5_folder, run.folder / "model")
    )
    changed = {name.split(".")[-2] for name, weight in began.items() if not ended[name].equal(weight)}
    assert changed == {"q_proj", "in_proj_qkv", "in_proj_a", "out_proj"}


EVALUATION = (
    *("experiment=smoke", "rollout=hf", "data=looking", "data.families=[search]", "data.difficulty=1"),
    *("rollout.max_new_tokens=6", "rollout.max_model_len=512", "evaluation.questions=2", "intervention.image=1"),
)


def test_layers_have_their_own_numbers_in_an_evaluation(commands, qwen3_5_folder: Path, tmp_path: Path) -> None:
    given = (*EVALUATION, f"start_model={qwen3_5_folder}")
    done = commands("ral-evaluate", *given, "intervention.layers=[3]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "smoke"
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["layers"] == [1, 3] and len(found["looks_by_layer"]["visual_mass"]) == 2
    assert [
        text for text in ("layer 0", "layer 1", "layer 3") if text in (folder / "visual_score.svg").read_text()
    ] == [
        "layer 1",
        "layer 3",
    ]
    table = done.stdout.partition("layer by layer")[2]
    assert [line.split()[1] for line in table.splitlines() if line.startswith("│")] == ["1", "3"]
    refused = commands("ral-evaluate", *given, "intervention.layers=[0]", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1] == (
        "error: intervention.layers=[0]: layer 0 has linear attention, which cannot be steered; layers with softmax "
        "attention are 1, 3"
    )


def test_a_layer_with_linear_attention_is_refused(commands, qwen3_5_folder: Path, tmp_path: Path) -> None:
    layers = "algorithm.attention.layers=[0]"
    done = commands("ral-train", *RUN, layers, f"start_model={qwen3_5_folder}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "algorithm.attention: layers=[0]: layer 0 has linear attention, which has no weights to read; layers with "
        "softmax attention are 1, 3"
    )
