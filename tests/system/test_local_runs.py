"""Whole runs in one process: what they leave, that they repeat bit for bit, and that no kill changes them."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.system.killing import kill_when_logged
from tests.system.marks import marking, new_mark

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

SUMMARY = (
    "seed",
    "rl_steps",
    "held_out_accuracy_after_sft",
    "held_out_accuracy_after_rl",
    "format_rate_after_rl",
    "max_abs_logprob_diff",
    "prompt_id_mismatches",
    "weight_checksum_failures",
    "rollout_tokens_per_s",
    "wall_s",
)
KILL_AT = Path(__file__).parent / "kill_at"


def without_nulls(value: Any) -> bool:
    return all(map(without_nulls, value.values())) if isinstance(value, dict) else value is not None


def test_a_run_leaves_its_record_and_a_model(commands, left, tmp_path: Path) -> None:
    done = commands("ral-train", "experiment=smoke", "cluster=local", "cluster.threads_per_process=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = left(tmp_path / "runs" / "smoke")
    assert str(run.folder) in done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.count("attention by torch's scaled_dot_product_attention") == 3  # once a stage
    assert done.stderr.count("cold start: engines and learner agree: largest log-prob difference ") == 1
    for name in ("config.yaml", "metrics.jsonl", "rollouts.jsonl", "report.html", "summary.json"):
        assert (run.folder / name).stat().st_size > 0, name
    assert [path.name for path in run.folder.rglob(".*")] == [".lock"]  # nothing half-written
    summary = run.summary()
    assert {key: summary[key] for key in SUMMARY if not without_nulls(summary[key])} == {}
    assert (summary["seed"], summary["rl_steps"]) == (0, 4)
    assert summary["max_abs_logprob_diff"] <= 1e-4
    stages = [(line["stage"], line["step"]) for line in run.lines()]
    supervised = [(stage, step) for stage in ("perceive", "sft") for step in (1, 2, 3, 4)]
    assert stages == [*supervised, *(("rl", step) for step in (0, 1, 2, 3, 4))]
    assert {"reward/total", "eval/accuracy"} <= run.lines()[-1].keys()
    run.assert_no_prompt_lost_or_repeated()

    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(run.folder / "model")
    tokenizer = AutoProcessor.from_pretrained(run.folder / "model").tokenizer
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0]


def test_a_command_is_one_wandb_run_and_a_later_one_continues_it(commands, left, tmp_path: Path) -> None:
    common = ("experiment=smoke", "cluster=local", "cluster.threads_per_process=1", "logging.wandb=offline")
    settings = " ".join(common)
    run, uploads = left(tmp_path / "runs" / "smoke"), []
    for command, stages in (("ral-train", "stages=[perceive,sft]"), ("ral-rl", "seed=0"), ("ral-rl", "seed=0")):
        done = commands(command, *common, stages, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        uploads.append(done.stderr.count("wandb sync"))
    assert uploads == [1, 1, 0]  # the last command had nothing left to do
    files = sorted((run.folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [file.name for file in files] == [f"run-{(run.folder / 'wandb-run-id').read_text()}.wandb"] * 2
    recorded = [line["command"] for line in run.lines("commands.jsonl")]
    assert recorded == [f"ral-train {settings} 'stages=[perceive,sft]'", f"ral-rl {settings} seed=0"]
    assert run.summary()["commands"] == recorded
    assert {"ral_system", "python", "torch", "transformers", "wandb"} <= run.summary()["versions"].keys()
    start, end = (run.folder / name / "generation_config.json" for name in ("models/start", "model"))
    assert start.read_bytes() == end.read_bytes()
    assert len({file.stat().st_mode for file in (run.folder / "model").iterdir() if file.is_file()}) == 1


@pytest.mark.long
def test_a_multirun_trains_every_job_in_its_own_folder_and_goes_on_with_it(commands, tmp_path: Path) -> None:
    run = ("-m", "experiment=smoke", "cluster=local", "stages=[perceive,sft]", "perceive.max_steps=2", "seed=0,1")
    done = commands("ral-train", *run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = [
        json.loads(file.read_text()) for file in sorted(tmp_path.glob("runs/smoke_seed-?/models/sft/stage.json"))
    ]
    assert len(results) == 2
    for seed, result in enumerate(results):
        assert f"seed={seed}: done, held-out accuracy {result['held_out_score']:.3f}, " in done.stderr
    again = commands("ral-train", *run, cwd=tmp_path)
    assert (again.returncode, again.stderr.count("step")) == (0, 0), again.stderr


def test_every_metric_is_in_the_glossary(uninterrupted) -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    patterns = [
        re.sub(r"<[a-z]+>", "[A-Za-z0-9_ -]+", re.escape(name).replace(r"\<", "<").replace(r"\>", ">"))
        for name in re.findall(r"`([a-z_]+(?:/[a-z0-9_<>]+)*)`", text)
    ]
    known = re.compile(rf"(?:{'|'.join(patterns)})(?:_positive|_negative)?(?:_last|_max|_update_[0-9]+)?")
    names = {name for line in uninterrupted.lines() for name in line}
    assert len(names) > 60
    assert sorted(name for name in names if not known.fullmatch(name)) == []


def test_there_is_a_signal_to_lose(uninterrupted) -> None:
    """Else the tests below would compare weights that nothing changed."""
    steps = uninterrupted.rl_steps()
    assert any(step["rollout/groups_without_signal"] < 1 for step in steps)
    assert all(step["policy/kl"] > 0 for step in steps)
    assert any(step["attention/divergence_positive"] + step["attention/divergence_negative"] > 0 for step in steps)
    assert uninterrupted.weights("model") != uninterrupted.weights("models/sft")


def test_stages_as_separate_commands_elsewhere_repeat_the_run_bit_for_bit(
    commands, left, with_signal, uninterrupted, tmp_path: Path
) -> None:
    for stage in ("ral-perceive", "ral-sft", "ral-rl"):
        done = commands(stage, *with_signal, f"runs_dir={tmp_path}/elsewhere", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    left(tmp_path / "elsewhere" / "smoke").assert_equal(uninterrupted)


def test_a_finished_run_given_more_steps_ends_as_one_that_had_them_from_the_start(
    commands, left, with_signal, uninterrupted, tmp_path: Path
) -> None:
    run = left(tmp_path / "runs" / "smoke")
    for steps in (2, 4):
        done = commands("ral-train", *with_signal, f"algorithm.steps={steps}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "model/ are written" in done.stdout
        assert run.summary()["rl_steps"] == steps
    assert "continuing with algorithm.steps=4 (was 2)" in done.stderr
    for model in ("models/perceive", "models/sft", "model"):
        assert run.weights(model) == uninterrupted.weights(model), model
    trained, expected = (
        [{n: v for n, v in line.items() if not n.startswith("eval/")} for line in of.timeless_metrics()]
        for of in (run, uninterrupted)
    )
    assert trained == expected
    evaluated = [line["step"] for line in run.lines() if line["stage"] == "rl" and "eval/accuracy" in line]
    assert evaluated == [0, 2, 4]
    (change,) = run.lines("changes.jsonl")
    assert change["changed"] == {"algorithm.steps": [2, 4]}
    assert (change["stage"], change["step"]) == ("rl", 2)

    before = (run.folder / "config.yaml").read_text()
    for steps in (4, 3):
        done = commands("ral-train", *with_signal, f"algorithm.steps={steps}", cwd=tmp_path)
        assert done.returncode == 0
        assert "nothing to do" in done.stdout and "rl ended at step 4; raise algorithm.steps" in done.stdout
        assert (run.folder / "config.yaml").read_text() == before
    refused = commands("ral-train", *with_signal, "sft.max_steps=41", cwd=tmp_path)
    assert refused.returncode == 2
    assert "ended at step 40, and rl started from its model" in refused.stderr
    assert (run.folder / "config.yaml").read_text() == before


def test_an_evaluation_compares_the_steered_model_with_the_plain_one(
    commands, with_signal, uninterrupted, tmp_path: Path
) -> None:
    model = uninterrupted.folder / "model"
    steer = ("intervention.image=3", "intervention.system=0.9", "intervention.space=logits", "intervention.layers=[1]")
    shared = [override for override in with_signal if not override.startswith("sft.")]
    given = ("ral-evaluate", *shared, f"start_model={model}", "name=steered", "evaluation.questions=10")
    done = commands(*given, *steer, "evaluation.blind=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "black" in done.stdout and "image +3, system -0.9" in done.stdout and "visual_attention_score" in done.stdout
    found = json.loads((tmp_path / "runs" / "steered" / "evaluation.json").read_text())
    measured = {name for name in found if name.startswith("eval/")}
    assert found["steered"].keys() == found["black"].keys() == found["exchanged"].keys() == measured
    assert found["black"]["eval/questions"] == found["exchanged"]["eval/questions"] == 10
    assert found["intervention"]["layers"] == [1]
    refused = commands(*given, "intervention.image=1", "intervention.heads=[9]", cwd=tmp_path)
    assert refused.returncode == 2 and "intervention.heads=[9]: the model has 2 heads, so no 9" in refused.stderr


GONE_WITHIN_S = 20.0
ENDS = [
    ("perceive", 1, signal.SIGKILL, -9),  # before the first checkpoint
    ("perceive", 3, signal.SIGKILL, -9),
    ("sft", 1, signal.SIGKILL, -9),
    ("sft", 9, signal.SIGINT, 130),
    ("sft", 20, signal.SIGKILL, -9),
    ("rl", 0, signal.SIGKILL, -9),
    ("rl", 1, signal.SIGTERM, 130),
    ("rl", 3, signal.SIGKILL, -9),
]


@pytest.mark.parametrize(
    "ends", [pytest.param(ENDS[1::2], id="four"), pytest.param(ENDS, id="all", marks=pytest.mark.long)]
)
def test_killed_in_every_stage_it_ends_as_if_nothing_had_happened(
    commands, left, end_of, with_signal, uninterrupted, tmp_path: Path, ends: list[tuple]
) -> None:
    """No process that it has started, such as those of verifiers, outlives it."""
    run, mark = left(tmp_path / "runs" / "smoke"), new_mark()
    for stage, step, how, code in ends:
        process = commands.start("ral-train", *with_signal, cwd=tmp_path, **marking(mark))
        assert kill_when_logged(process, run, stage, step, how) == code, (stage, step)
        end_of(mark, GONE_WITHIN_S)
    done = commands("ral-train", *with_signal, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run.assert_equal(uninterrupted)
    run.assert_no_prompt_lost_or_repeated()
    assert run.summary().keys() == uninterrupted.summary().keys()
    times, expected = run.summary()["wall_s"], uninterrupted.summary()["wall_s"]
    phases = {stage: {*of_stage} for stage, of_stage in expected.items()}
    phases["rl"].add("check")  # a session that begins with rl compares engines and learner there
    assert {stage: {*of_stage} for stage, of_stage in times.items()} == phases


MOMENTS = {
    "building the first model": "os.rename .*/models/start",
    "in a checkpoint: nothing but its folder": "os.mkdir .*/perceive/.partial_000002/learner",
    "in a checkpoint: all but the manifest": "open .*/perceive/.partial_000004/manifest.json w",
    "between a stage's model and its name": "os.rename .*/models/perceive",
    "between a checkpoint and its name": "os.rename .*/sft/step_000004",
    "removing an old checkpoint": "shutil.rmtree .*/sft/step_000004",
    "between the best model and its name": "os.rename .*/sft/best_000040",
    "held-out score before RL is logged, not saved": "os.mkdir .*/rl/.partial_000000",
    "second step of RL is logged, not saved": "os.mkdir .*/rl/.partial_000002",
    "writing the report": "os.rename .*/report.html",
    "held-out score after RL is logged, the model not saved": "os.mkdir .*/.partial_model",
    "saving the model": "open .*/.partial_model/stage.json w",
    "the model is there, the summary is not": "shutil.rmtree .*/rl/step_000002",
}


@pytest.mark.parametrize(
    "moments",
    [pytest.param(list(MOMENTS)[1::3], id="some"), pytest.param(list(MOMENTS), id="all", marks=pytest.mark.long)],
)
def test_killed_at_every_delicate_moment_it_ends_as_if_nothing_had_happened(
    commands, left, with_signal, uninterrupted, tmp_path: Path, moments: list[str]
) -> None:
    run = left(tmp_path / "runs" / "smoke")
    for name in moments:
        moment = MOMENTS[name]
        dies = commands("ral-train", *with_signal, cwd=tmp_path, PYTHONPATH=str(KILL_AT), KILL_AT=moment)
        assert dies.returncode == -9, (name, dies.returncode, dies.stderr[-3000:])
    assert "rl_steps" not in run.summary() or run.summary()["rl_steps"] is None
    done = commands("ral-train", *with_signal, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run.assert_equal(uninterrupted)
    run.assert_no_prompt_lost_or_repeated()
    timed = ("wall_s", "rollout_tokens_per_s", "commands", "peak_gib")
    assert {k: v for k, v in run.summary().items() if k not in timed} == {
        k: v for k, v in uninterrupted.summary().items() if k not in timed
    }
    assert [path.name for path in run.folder.glob("checkpoints/*/*")] == ["step_000004"]  # from which more steps go on
    assert not list(run.folder.rglob(".partial*"))


def test_a_finished_run_is_left_alone(commands, with_signal, uninterrupted) -> None:
    model = uninterrupted.folder / "model" / "model.safetensors"
    config, before = (uninterrupted.folder / "config.yaml").read_text(), model.stat().st_mtime_ns
    cwd = uninterrupted.folder.parents[1]
    for override, says in (
        ("resume=never", "holds a run already; set another name, or resume=auto to continue it"),
        ("algorithm.policy_loss.clip_low=0.3", "was made with algorithm.policy_loss.clip_low=0.2, now 0.3"),
    ):
        done = commands("ral-train", *with_signal, override, cwd=cwd)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert says in done.stderr
    assert commands("ral-train", *with_signal, cwd=cwd).returncode == 0  # nothing is left to do
    assert (config, before) == ((uninterrupted.folder / "config.yaml").read_text(), model.stat().st_mtime_ns)


def test_without_a_learning_rate_nothing_moves(commands, left, with_signal, uninterrupted, tmp_path: Path) -> None:
    start = uninterrupted.folder / "models" / "sft"
    done = commands("ral-rl", *with_signal, f"start_model={start}", "learner.learning_rate=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = left(tmp_path / "runs" / "smoke")
    steps = run.rl_steps()
    assert len(steps) == 4
    assert any(step["rollout/groups_without_signal"] < 1 for step in steps)
    zero = ("attention/loss", "attention/divergence_positive", "attention/divergence_negative")
    assert {name: step[name] for step in steps for name in zero if step[name] != 0.0} == {}
    assert all(step["policy/kl"] < 1e-12 for step in steps)  # the reference's passes are other ones than the learner's
    assert run.weights("model") == uninterrupted.weights("models/sft")


@pytest.mark.parametrize("model", ["policy", "reference"])
def test_looking_at_the_picture_is_rewarded(
    commands, left, with_signal, uninterrupted, tmp_path: Path, model: str
) -> None:
    start = uninterrupted.folder / "models" / "sft"
    overrides = [*with_signal, "reward=avar", f"reward.visual.model={model}", f"start_model={start}"]
    done = commands("ral-rl", *overrides, "algorithm.kl.coefficient=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = left(tmp_path / "runs" / "smoke").rl_steps()
    assert any(0 < step["reward/visual"] < step["reward/correctness"] for step in steps)
    for step in steps:
        parts = step["reward/correctness"] + 0.1 * step["reward/format"] + 0.3 * step["reward/visual"]
        assert step["reward/total"] == pytest.approx(parts)
        assert (step["reward/visual"] == 0) == (step["reward/correctness"] == 0)
    assert any(step["rollout/groups_without_signal"] < 1 for step in steps)


def test_groups_without_a_signal_are_drawn_again(commands, left, with_signal, uninterrupted, tmp_path: Path) -> None:
    start = uninterrupted.folder / "models" / "sft"
    overrides = [
        *with_signal,
        "algorithm.sampling_rounds=3",
        "algorithm.overlong.handling=mask",
        f"start_model={start}",
    ]
    done = commands(
        "ral-rl", *overrides, "algorithm/policy_loss=dppo_top_k_tv", "rollout.stop_at_answer=true", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    run = left(tmp_path / "runs" / "smoke")
    run.assert_no_prompt_lost_or_repeated()
    steps, plain = run.rl_steps(), uninterrupted.rl_steps()
    assert sum(step["sampling/groups_dropped"] for step in steps) > 0
    assert all(step["sampling/prompts_drawn"] == step["prompts/end"] - step["prompts/first"] for step in steps)
    share = [sum(s["rollout/groups_without_signal"] for s in of) / len(of) for of in (steps, plain)]
    assert share[0] < share[1]


def test_the_overlapped_loop_ends_the_same_when_it_was_interrupted(
    commands, left, with_signal, uninterrupted, tmp_path: Path
) -> None:
    start = uninterrupted.folder / "models" / "sft"
    overrides = [*with_signal, "algorithm.max_staleness=1", "checkpoint.every=2", f"start_model={start}"]
    done = commands("ral-rl", *overrides, "name=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    killed, whole = (left(tmp_path / "runs" / name) for name in ("killed", "whole"))
    for step, how, code in ((1, signal.SIGINT, 130), (3, signal.SIGKILL, -9)):
        process = commands.start("ral-rl", *overrides, "name=killed", cwd=tmp_path)
        assert kill_when_logged(process, killed, "rl", step, how) == code
    done = commands("ral-rl", *overrides, "name=killed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    killed.assert_equal(whole, models=("model",))
    killed.assert_no_prompt_lost_or_repeated()
    assert {step["pipeline/staleness"] for step in whole.rl_steps()} == {0.0, 1.0}
    assert whole.weights() != uninterrupted.weights()


@pytest.mark.parametrize("on_new_weights", ["continue", pytest.param("discard", marks=pytest.mark.long)])
def test_weights_change_under_way_on_request(
    commands, left, with_signal, uninterrupted, tmp_path: Path, on_new_weights: str
) -> None:
    """Six steps without a pause, and long responses one at a time, so new weights find some of them under way."""
    start = uninterrupted.folder / "models" / "sft"
    overrides = [
        *with_signal,
        "algorithm.max_staleness=3",
        f"rollout.on_new_weights={on_new_weights}",
        "algorithm.steps=6",
        "checkpoint.every=6",
        "evaluation.every=6",
        "rollout.max_sequences=1",
        "rollout.temperature=2",
        f"start_model={start}",
    ]
    done = commands("ral-rl", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = left(tmp_path / "runs" / "smoke")
    run.assert_no_prompt_lost_or_repeated()
    steps = run.rl_steps()
    assert all(0 <= step["pipeline/staleness"] <= 3 for step in steps)
    assert all(step["gate/log_prob_diff_max"] <= 1e-4 for step in steps)  # every token at the weights that made it
    name = {"continue": "pipeline/switched", "discard": "pipeline/restarts"}[on_new_weights]
    assert sum(step[name] for step in steps) > 0, [(s["ahead/rollout_s"], s["time/update_s"]) for s in steps]


@pytest.mark.parametrize("algorithm", ["grpo_zero", "grpo"])
def test_the_controls_run(commands, left, with_signal, uninterrupted, tmp_path: Path, algorithm: str) -> None:
    start = uninterrupted.folder / "models" / "sft"
    overrides = [f"algorithm={algorithm}" if o.startswith("algorithm=") else o for o in with_signal]
    done = commands("ral-rl", *overrides, f"start_model={start}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = left(tmp_path / "runs" / "smoke")
    assert run.summary()["algorithm"] == algorithm
    assert len(run.rl_steps()) == 4
    assert not any("attention/loss" in step for step in run.rl_steps())
    if algorithm == "grpo_zero":  # what it is the control of had a different gradient
        assert run.weights() != uninterrupted.weights()
