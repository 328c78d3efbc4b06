"""Whole runs on real Ray, vLLM and DeepSpeed: rare settings, and that nothing outlives them however they end.

`test_ray_job_submit` has the one with every role.
"""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.system.marks import marking, new_mark
from tests.system.placements import trained_alike
from tests.system.video_r1_files import overrides, write_video_r1

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

GONE_WITHIN_S = 60.0
START_WITHIN_S = 500.0


@pytest.mark.long
def test_an_evaluation_asks_vllm_and_reads_attention_beside_it(commands, uninterrupted, tmp_path: Path) -> None:
    overrides = (
        "experiment=smoke",
        "name=evaluated",
        f"start_model={uninterrupted.folder / 'model'}",
        "evaluation.questions=5",
    )
    done = commands("ral-evaluate", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    evaluated = json.loads((tmp_path / "runs" / "evaluated" / "evaluation.json").read_text())
    assert evaluated["visual_attention_score"] > 0 and len(evaluated["visual_mass_by_layer_and_head"]) == 2
    assert (tmp_path / "runs" / "evaluated" / "visual_score.svg").is_file()


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "tensor_parallel"), [(1, 1), (2, 1), (2, 2)])
def test_engines_and_learners_that_take_turns_train_as_those_apart(
    commands, left, end_of, uninterrupted, tmp_path: Path, ranks: int, tensor_parallel: int
) -> None:
    """With a reference, which also takes turns. `test_lora_run` has the case that is always run."""
    settings = (
        *("experiment=smoke", "algorithm.steps=3", f"start_model={uninterrupted.folder / 'models' / 'sft'}"),
        *(f"learner.world_size={ranks}", f"rollout.workers={ranks // tensor_parallel}"),
        *(f"rollout.tensor_parallel={tensor_parallel}", "cluster.cpus_per_rollout=0.25"),
        *("learner.zero_stage=3", "evaluation.questions=4"),
    )
    trained_alike(commands, left, end_of, tmp_path, "ral-rl", *settings)


@pytest.mark.long
def test_rl_in_bfloat16_as_the_7b_recipe_sets_it(commands, left, uninterrupted, tmp_path: Path) -> None:
    """Learners, reference and rollout engine in bfloat16, ZeRO-3, gradient checkpointing, frozen vision."""
    settings = (
        *("experiment=smoke", "algorithm=ral_zero", f"start_model={uninterrupted.folder / 'models' / 'sft'}"),
        *("learner.dtype=bfloat16", "learner.zero_stage=3", "learner.gradient_checkpointing=true"),
        *("model.freeze_vision=true", "learner.learning_rate=1e-3", "learner.warmup_updates=0"),
        *("rollout.dtype=bfloat16", "rollout.log_prob_gate={token: 2, outliers: 0.001, mean: 0.1, p999: 1}"),
    )
    done = commands("ral-rl", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    run = left(tmp_path / "runs" / "smoke")
    steps = run.rl_steps()
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert all(step["attention/divergence_first_update"] == 0 for step in steps)
    assert any(step["attention/divergence_positive_last"] > 0 for step in steps)
    # rounded to 8 bits, the engines differ, and not by more than that explains
    assert all(1e-4 < step["gate/log_prob_diff_mean"] < 0.1 for step in steps)
    assert all(step["gate/log_prob_diff_p999"] <= step["gate/log_prob_diff_max"] < 1 for step in steps)
    assert run.summary()["log_prob_failures"] == 0


def wait_for_step(process: subprocess.Popen, run, step: int) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        if (run.folder / "metrics.jsonl").exists() and any(line["step"] >= step for line in run.whole_lines()):
            return
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail(f"step {step} was not seen: {process.communicate(timeout=60)[1][-3000:]}")


@pytest.mark.long
def test_nothing_outlives_a_run_however_it_ends_and_it_goes_on(
    commands, left, uninterrupted, marked, end_of, tmp_path: Path
) -> None:
    """With questions from files, about pictures, videos and nothing."""
    start, mark = uninterrupted.folder / "models" / "sft", new_mark()
    run = left(tmp_path / "runs" / "smoke")
    files = (*overrides(write_video_r1(tmp_path / "released")), "stages=[rl]")
    command = ("ral-rl", "experiment=smoke", *files, f"start_model={start}", "algorithm.steps=12")

    def started(step: int) -> subprocess.Popen:
        process = commands.start(*command, cwd=tmp_path, fresh=True, **marking(mark))
        wait_for_step(process, run, step)
        return process

    process = started(step=2)
    victim = (run.folder / "logs" / "learner_1.log").read_text().rsplit("pid ", 1)[1].split()[0]
    os.kill(int(victim), signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert errors[0].startswith("error: learner 1 died while "), err
    assert err.splitlines()[-1] == errors[0]
    end_of(mark, GONE_WITHIN_S)
    print(f"learner killed: all ended after {time.monotonic() - began:.1f} s")

    for step, number in ((4, signal.SIGINT), (6, signal.SIGTERM)):
        process = started(step)
        began = time.monotonic()
        os.killpg(process.pid, number)  # as a terminal does, and `timeout`
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130, err
        assert err.splitlines()[-1] == "interrupted; run the same command again to continue"
        assert "Traceback" not in err
        end_of(mark, GONE_WITHIN_S)
        print(f"interrupted: all ended after {time.monotonic() - began:.1f} s")

    process = started(step=8)
    began = time.monotonic()
    process.kill()
    process.communicate(timeout=120)
    while roles := [name for name in marked(mark).values() if re.search(r"ray::\w*Actor|VLLM|ral_system", name)]:
        assert time.monotonic() - began < GONE_WITHIN_S / 2, roles
        time.sleep(0.1)
    print(f"driver killed: all roles ended after {time.monotonic() - began:.1f} s")
    end_of(mark, 2 * GONE_WITHIN_S)  # two agents of Ray may stay for a minute
    print(f"driver killed: all ended after {time.monotonic() - began:.1f} s")

    smaller = ("learner.max_tokens=64", "learner.gradient_checkpointing=true", "rollout.max_sequences=4")
    done = commands(*command, *smaller, cwd=tmp_path, timeout_s=START_WITHIN_S, fresh=True, **marking(mark))
    assert done.returncode == 0, done.stderr
    end_of(mark, GONE_WITHIN_S)
    assert "continuing with learner.max_tokens=64 (was 4096)" in done.stderr
    (change,) = run.lines("changes.jsonl")
    assert change["changed"].keys() == {override.split("=")[0] for override in smaller} and change["step"] >= 8
    assert [step["step"] for step in run.rl_steps()] == list(range(1, 13))
    run.assert_no_prompt_lost_or_repeated()
    evaluated = [line["step"] for line in run.lines() if line["stage"] == "rl" and "eval/accuracy" in line]
    assert (evaluated[0], evaluated[-1]) == (0, 12)
    assert [line["step"] for line in run.lines() if line["stage"] == "rl"] == list(range(13))
    assert run.summary()["rl_steps"] == 12
