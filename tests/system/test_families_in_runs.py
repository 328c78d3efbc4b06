"""Families from a cold start over Ray, vLLM and DeepSpeed to a folder to share: gates hold, transformers loads it.

All but Qwen2.5-VL, which `test_ray_run.py` trains. Gemma 3 has transformers engines, since vLLM refuses it on a CPU.
"""

import json
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from ral_system.families.known import family_of
from ral_system.models.loading import load_model
from ral_system.models.named_weights import named_weights
from ral_system.tasks import looking, visual_search
from tests.gemma3_model import build_gemma3
from tests.glm4v_model import build_glm4v
from tests.qwen2_model import build_qwen2_vl
from tests.qwen3_5_model import build_qwen3_5
from tests.qwen3_model import build_qwen3_vl
from tests.smolvlm_model import build_smolvlm
from tests.tiled_models import TILED

pytestmark = [pytest.mark.system, pytest.mark.timeout(1500)]

WORDS = (*visual_search.words(), *looking.words())
BUILD = {
    "qwen3_vl": build_qwen3_vl,
    "qwen3_5": build_qwen3_5,
    "glm4v": build_glm4v,
    **{name: partial(tiled.build, words=WORDS) for name, tiled in TILED.items()},
    "gemma3": partial(build_gemma3, words=WORDS, window=64),  # within which answers see the pictures
    "qwen2_vl": partial(build_qwen2_vl, words=WORDS),
    "idefics3": partial(build_smolvlm, words=WORDS, model_type="idefics3"),
}
RUN = (
    *("experiment=smoke", "stages=[sft,rl]", "sft.max_steps=2", "sft.evaluate_every=2", "sft.evaluate_from=2"),
    *("algorithm.steps=2", "evaluation.every=0", "evaluation.questions=2", "evaluation.stage_questions=2"),
    *("learner.zero_stage=3", "learner.gradient_checkpointing=true"),
    *("learner.learning_rate=1e-3", "learner.warmup_updates=0"),
    *("algorithm.attention.anchor=reference", "algorithm.kl.coefficient=0.1"),
    "algorithm.entropy_coefficient=1",  # random answers earn nothing to learn from
)
BFLOAT16 = (
    *("rollout.dtype=bfloat16", "rollout.log_prob_gate={token: 2, outliers: 0.001, mean: 0.1, p999: 1}"),
    "algorithm.attention.layers=all",
)
SETTINGS = {"qwen3_5": BFLOAT16, "gemma3": ("rollout=hf", "rollout.workers=2", "cluster.cpus_per_rollout=0.25")}
"""Settings of families that vLLM on a CPU has in bfloat16 only, or not at all."""
ALIKE = ("qwen3_vl", "glm4v")
"""Families whose passes of other sizes, as the reference and a rank have them, round alike with these models."""
ASKED = ("experiment=smoke", "name=asked", "cluster=local", "rollout=hf", "evaluation.questions=3")


@pytest.mark.long  # what is of a family, `make test` tries in vLLM and on ranks
@pytest.mark.parametrize("family", list(BUILD))
def test_a_family_goes_from_a_cold_start_to_a_shared_folder(commands, left, tmp_path: Path, family: str) -> None:
    BUILD[family](tmp_path / "start")
    videos = family_of(family, family).max_media["video"]
    tasks = ("search", "needle") if videos else ("search",)  # about a picture, about a video
    data = ("data=looking", f"data.families=[{','.join(tasks)}]", "data.difficulty=1", "rollout.max_model_len=512")
    gap = 0.2 if family == "qwen3_5" else 1e-4
    start = f"start_model={tmp_path / 'start'}"
    done = commands("ral-train", *RUN, *data, *SETTINGS.get(family, ()), start, cwd=tmp_path, timeout_s=900)
    assert done.returncode == 0, done.stderr
    engines, named = (2, "2 hf engines") if family == "gemma3" else (1, "1 vllm engine")
    assert f"2 deepspeed ranks, {named}" in done.stderr
    run = left(tmp_path / "runs" / "smoke")
    run.assert_no_prompt_lost_or_repeated()
    summary, steps = run.summary(), run.rl_steps()
    assert (summary["prompt_id_mismatches"], summary["weight_checksum_failures"]) == (0, 0)
    assert summary["max_abs_logprob_diff"] <= gap
    assert [line["step"] for line in run.lines() if line["stage"] == "sft"] == [1, 2]
    assert [step["step"] for step in steps] == [1, 2]
    assert {row["kind"] for row in run.lines("rollouts.jsonl")} == {f"{task}_1" for task in tasks}
    rounding = 0.0 if family in ALIKE else 1e-12
    assert steps[0]["attention/divergence_first_update"] <= rounding < steps[1]["attention/divergence_first_update"]

    folders = (tmp_path / "start", run.folder / "models" / "sft", run.folder / "model")
    began, cold, ended = (load_model(folder, dtype="float32").state_dict() for folder in folders)
    published = named_weights(load_model(folders[0], dtype="float32"))
    assert all(step["gate/tensors_verified"] == engines * len(published) for step in steps)
    for before, after in ((began, cold), (cold, ended)):
        changed = [name for name, weight in before.items() if not after[name].equal(weight)]
        assert any(".visual." in name or ".vision_" in name for name in changed), changed

    asked = (*ASKED, *data, f"start_model={run.folder / 'model'}")
    done = commands("ral-evaluate", *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "runs" / "asked" / "evaluation.json").read_text())
    assert found["eval/questions"] == 3 and 0 < found["looks/visual_mass"] < 1
    done = commands("ral-export", "runs/smoke", "exported", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shared = AutoModelForImageTextToText.from_pretrained(tmp_path / "exported").state_dict()
    assert shared.keys() == ended.keys() and all(shared[name].equal(weight) for name, weight in ended.items())
    processors = [AutoProcessor.from_pretrained(folder) for folder in (tmp_path / "start", tmp_path / "exported")]
    of_start, of_shared = (processor.to_dict() for processor in processors)
    assert of_shared == of_start and processors[0].chat_template == processors[1].chat_template
