"""A run on rows of files in several scripts, from a tiny model with Qwen's tokenizer of 152,000 tokens."""

import json
from pathlib import Path

import pytest

from tests import chat_templates
from tests.qwen_tokenizer import qwen_tokenizer
from tests.system.video_r1_files import overrides, write_video_r1

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

IN_SCRIPTS = " 👩‍👩‍👧 ما لون النجمة؟ 這是 𠮷 嗎？ e\u0301"


@pytest.mark.long
def test_a_tiny_model_with_qwen_s_tokenizer_goes_through_sft_and_rl(commands, left, tmp_path: Path) -> None:
    """A template that opens the thought, tags that are written as text, and questions in several scripts."""
    tokenizer = qwen_tokenizer(thinks=True)
    tokenizer.chat_template = chat_templates.QWEN3_VL_THINKING
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = write_video_r1(tmp_path / "data", rows=12)
    written = json.loads(rows.read_text())
    for row in written:
        row["problem"] += IN_SCRIPTS
    rows.write_text(json.dumps(written))
    done = commands(
        *("ral-train", "experiment=smoke", "cluster=local", *overrides(rows), "stages=[sft,rl]"),
        *("data.think_tags=text", f"model.tiny.tokenizer={tmp_path / 'tokenizer'}"),
        *("sft.max_steps=1", "sft.evaluate_every=1", "sft.evaluate_from=1", "sft.batch=4"),
        *("algorithm.steps=1", "algorithm.prompts_per_step=2", "evaluation.questions=2"),
        *("rollout.max_model_len=256", "data.max_broken=0.5"),
        cwd=tmp_path,
        timeout_s=1200,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "warning: model.tiny" not in done.stderr
    assert f"new tiny model, 2 layers of width 64, with the tokenizer of {tmp_path / 'tokenizer'}" in done.stderr
    run = left(tmp_path / "runs" / "smoke")
    (step,) = run.rl_steps()
    assert step["step"] == 1 and step["gate/log_prob_diff_max"] <= 1e-4
    said = [line["response"] for line in run.lines("rollouts.jsonl")]
    assert said and all(text.startswith("<think>\n") for text in said)
    assert all(IN_SCRIPTS.strip() in line["question"] for line in run.lines("rollouts.jsonl"))
    assert run.summary()["prompt_id_mismatches"] == 0
    run.assert_no_prompt_lost_or_repeated()
