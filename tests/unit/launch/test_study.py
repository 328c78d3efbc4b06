"""Studies: the commands they make, what they refuse, and the table of what came out."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ral_system.config.commands import COMMANDS as CONFIGS
from ral_system.errors import ConfigError
from ral_system.launch.foreign import refuse_foreign
from ral_system.launch.study import cli
from ral_system.launch.study.files import COMMANDS, STUDIES, Run, Study, read_study
from ral_system.launch.study.processes import RunError, run_all
from ral_system.launch.study.results import write_results
from tests.composed import compose_config

SMALL = """
title: Two arms
prepare:
  - [ral-train, experiment=smoke, name=start]
common: [experiment=smoke]
arms:
  a: [ral-sft, "start_model=${folder}/start/models/sft", algorithm=grpo]
  b: [ral-rl, "start_model=${folder}/a_seed${seed}/models/sft"]
seeds: [3, 4]
metrics: [attention/vas]
evaluate: []
"""


def test_prepared_runs_come_first_then_every_seed_of_every_arm(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    study = read_study(path, tmp_path / "runs")
    trained = [run for run in study.runs if run.evaluates is None]
    assert [(run.name, run.arm) for run in trained] == [
        ("start", None),
        *((f"{arm}_seed{seed}", arm) for seed in (3, 4) for arm in ("a", "b")),
    ]
    start = f"start_model={tmp_path}/runs"
    own = (f"runs_dir={tmp_path}/runs", "name=a_seed3", "seed=3")
    assert trained[1].command == (
        *("ral-sft", "experiment=smoke", f"{start}/start/models/sft", "algorithm=grpo"),
        *own,
    )
    assert trained[4].command[2] == f"{start}/a_seed4/models/sft"
    again = read_study(path, tmp_path / "runs", seeds=[9], overrides=["algorithm.steps=2"])
    assert [run.name for run in again.runs if run.evaluates is None] == ["start", "a_seed9", "b_seed9"]
    assert all(("algorithm.steps=2" in run.command) == (run.evaluates is None) for run in again.runs)


@pytest.mark.parametrize(
    ("override", "says"),
    [("algorithm.stepz=3", "unknown key; did you mean algorithm.steps?"), ("colour=red", "unknown key; remove it")],
)
def test_a_mistyped_override_is_refused(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"--overrides {override}: {says}")):
        read_study(STUDIES / "lambda_quickstart.yaml", tmp_path, overrides=[override])
    assert read_study(
        STUDIES / "lambda_quickstart.yaml", tmp_path, overrides=["experiment=smoke", "+reward.kinds.a=ocr"]
    )


def test_overrides_go_to_the_commands_that_read_them(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)

    def given(override: str) -> set[str]:
        return {
            run.command[0] for run in read_study(path, tmp_path, overrides=[override]).runs if override in run.command
        }

    training = {"ral-train", "ral-sft", "ral-rl"}
    assert given("algorithm/policy_loss=gspo") == given("+learner.lr=1") - {"ral-evaluate"} == training
    assert given("evaluation.samples=3") == {"ral-evaluate"}
    assert given("seed=1") == training | {"ral-evaluate"}
    with pytest.raises(
        ConfigError, match=r"--overrides synthesis\.rows=3: no command of the study reads it; remove it"
    ):
        given("synthesis.rows=3")


def test_every_arm_s_model_is_evaluated_where_its_command_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.replace("evaluate: []", "evaluate: [evaluation.questions=7]"))
    study = read_study(path, tmp_path / "runs", seeds=[3])
    assert [(run.name, run.arm) for run in study.runs[1:]] == [
        ("a_seed3", "a"),
        ("a_seed3_evaluation", None),
        ("b_seed3", "b"),
        ("b_seed3_evaluation", None),
    ]
    sft, rl = (run.command for run in (study.runs[2], study.runs[4]))
    assert sft[:2] == ("ral-evaluate", "evaluation.questions=7")
    assert f"start_model={tmp_path}/runs/a_seed3/models/sft" in sft
    assert f"start_model={tmp_path}/runs/b_seed3/model" in rl


def test_a_run_by_the_same_command_on_the_same_model_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, "ral-evaluate", "tests.unit.launch.commands:count")
    model, folder = tmp_path / "model", tmp_path / "evaluated"
    model.mkdir()
    folder.mkdir()
    (folder / "evaluation.json").write_text("{}")
    (model / "stage.json").write_text("first")
    counter = tmp_path / "count"

    def times(*words: str) -> int:
        command = ("ral-evaluate", str(counter), f"start_model={model}", *words)
        run_all([Run("evaluated", command, folder=folder, leaves="evaluation.json")], tmp_path)
        return len(counter.read_text())

    assert [times(), times()] == [1, 1]
    assert times("evaluation.questions=9") == 2
    assert [times(), times()] == [3, 3]
    (model / "stage.json").write_text("trained again")
    assert times() == 4
    (folder / "evaluation.json").unlink()
    assert times() == 5


def test_the_command_is_waited_for_when_the_study_is_interrupted(tmp_path: Path) -> None:
    """From the terminal both hear of it; a SIGTERM to the study alone is passed on."""
    code = (
        "from pathlib import Path; from ral_system.launch.study import files, processes;"
        "files.COMMANDS['ral-rl'] = 'tests.unit.launch.commands:slow_to_end';"
        f"processes.run_all([files.Run('slow', ('ral-rl', {str(tmp_path)!r}))], Path())"
    )
    for number, to_group in ((signal.SIGINT, True), (signal.SIGTERM, False)):
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        (os.killpg if to_group else os.kill)(process.pid, number)
        assert process.wait(timeout=60) != 0
        assert (tmp_path / "ended").read_text() == "tidily"
        for name in ("started", "ended"):
            (tmp_path / name).unlink()


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_composes(path: Path, tmp_path: Path) -> None:
    runs = read_study(path, tmp_path).runs
    first = min(run.seed for run in runs if run.seed is not None)
    firsts = [run.command for run in runs if run.seed in (None, first)]  # the others differ in a number
    alike = {tuple(w for w in words if not w.startswith(("name=", "start_model="))): words for words in firsts}
    for command, *words in alike.values():
        compose_config(*words, kind=CONFIGS[command])
        refuse_foreign(words, CONFIGS[command])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prepare: []", "title: Field required"),
        ("- a", "the file: Input should be"),
        ("a: [", "while parsing"),
        (SMALL + "colour: red", "colour: Extra inputs are not permitted"),
        (SMALL.replace("seeds: [3, 4]", "seeds: 3"), "seeds: Input should be a valid list"),
        (SMALL.replace("seeds", "  c:\nseeds"), "arms.c: Input should be a valid list"),
        (SMALL.replace("b: [ral-rl,", "b: [ral-synthesize,"), "ral-synthesize is not one of ral-train, ral-rl"),
        (
            SMALL.replace("- [ral-train, experiment=smoke, name=start]", "- []"),
            "prepare.0: List should have at least 1",
        ),
        (SMALL.replace("[3, 4]", "[3, 4, 3]"), "seed 3 is given twice, and its runs would share a folder"),
        (
            SMALL.replace("${folder}/start/models/sft", "${folder}/b_seed${seed}/model"),
            "a_seed3, a_seed3_evaluation, b_seed3, .* wait for each other; start one from another model",
        ),
        (SMALL.replace("ral-rl", "rm"), "rm is not one of ral-train"),
        (SMALL.replace("evaluate: []", ""), r"arms.a has no RL stage, which measures accuracy; add evaluate: \[\]"),
        (
            SMALL.replace("b: [ral-rl,", 'b: [ral-train, "stages=[sft]",'),
            "arms.b leaves no model of RL; use ral-sft or ral-perceive",
        ),
    ],
)
def test_a_file_that_is_no_study_is_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_study(path, tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def write_run(folder: Path, accuracy: float, vas: list[float]) -> None:
    folder.mkdir()
    (folder / "summary.json").write_text(
        json.dumps({"held_out_accuracy_after_rl": accuracy, "wall_s": {"rl": {"total": 12.5}}})
    )
    lines = [
        {"stage": "sft", "step": 1, "eval/accuracy": 0.1},
        {"stage": "rl", "step": 0, "eval/accuracy": 0.5},
        *({"stage": "rl", "step": i + 1, "attention/vas": v} for i, v in enumerate(vas)),
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_table_has_every_seed_the_mean_and_metrics_from_first_to_last(tmp_path: Path) -> None:
    runs = (Run("start", ()), *(Run(f"{arm}_{i}", (), arm, 5 + i) for arm in "ab" for i in range(2)))
    for name, accuracy, vas in (
        ("a_0", 0.6, [1.0, 9.0, 3.0]),
        ("a_1", 0.8, [2.0, 5.0]),
        ("b_0", 0.9, []),
        ("b_1", 0.7, []),
    ):
        write_run(tmp_path / name, accuracy, vas)
    table = write_results(
        Study("Two arms", runs, ("a", "b"), ("attention/vas",), ("attention/vas",), evaluated=False), tmp_path
    )
    assert "|  | seed 5 | seed 6 | mean | before | seconds | attention/vas |" in table
    assert "| a | 0.600 | 0.800 | **0.700** | 0.5 | 12.5 | 1.5 → 4 |" in table
    assert "| b | 0.900 | 0.700 | **0.800** | 0.5 | 12.5 | - |" in table
    assert (tmp_path / "study.md").read_text() == table
    assert "mean 0.8 of 2" in (tmp_path / "study.svg").read_text()
    drawn = (tmp_path / "curves.svg").read_text()
    assert drawn.count('class="line thin"') == 2 and drawn.count('class="line ink"') == 1  # two runs of a, their mean
    lines = [json.loads(line) for line in (tmp_path / "study.jsonl").read_text().splitlines()]
    assert lines[0]["metrics"] == {"attention/vas": [1.0, 3.0]} and lines[0]["seconds"] == 12.5


def test_evaluations_take_the_place_of_what_training_measured(tmp_path: Path) -> None:
    runs = [Run(f"{arm}_{i}", (), arm, i) for arm in "ab" for i in range(2)]
    for run, accuracy, score in zip(list(runs), (0.5, 0.7, 0.8, 0.9), (2.0, 4.0, None, None), strict=True):
        folder = tmp_path / f"{run.name}_evaluation"
        folder.mkdir()
        score_and_masses = {} if score is None else {"visual_attention_score": score, "visual_mass": 0.5}
        found = {"eval/accuracy": accuracy, "eval/length_mean": 7.0, **score_and_masses}
        (folder / "evaluation.json").write_text(json.dumps(found))
        runs.append(Run(folder.name, (), evaluates=tmp_path, folder=folder, leaves="evaluation.json"))
        runs[-1].note_complete()
    table = write_results(Study("Rungs", tuple(runs), ("a", "b")), tmp_path)
    assert "|  | seed 0 | seed 1 | mean | visual attention score | visual mass | system mass | seconds |" in table
    assert "| a | 0.500 | 0.700 | **0.600** | 3 | 0.5 | - | - |" in table
    assert "| b | 0.800 | 0.900 | **0.850** | - | - | - | - |" in table
    assert not (tmp_path / "curves.svg").exists()
    svg = (tmp_path / "study.svg").read_text()
    assert "a: mean 3 of 2" in svg and "b: mean" in svg


def test_an_arm_that_failed_is_in_the_table_as_far_as_it_went(tmp_path: Path) -> None:
    runs = tuple(Run(f"a_{i}", (), "a", i) for i in range(2))
    write_run(tmp_path / "a_0", 0.6, [1.0, 3.0])
    (tmp_path / "a_1").mkdir()
    metrics = [{"stage": "rl", "step": 1, "attention/vas": 5.0}, {"stage": "rl", "step": 2, "attention/vas": None}]
    (tmp_path / "a_1" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    study = Study("One arm", runs, ("a",), metrics=("attention/vas",), curves=("attention/vas",), evaluated=False)
    table = write_results(study, tmp_path)
    assert "| a | 0.600 | ended after rl step 2 | **0.600** | 0.5 | 12.5 | 3 → 4 |" in table
    assert (tmp_path / "curves.svg").read_text().count('class="line thin"') == 2
    write_results(Study("One arm", runs[1:], ("a",), evaluated=False), tmp_path)
    assert "| a | ended after rl step 2 | - | - | - |" in (tmp_path / "study.md").read_text()


def test_an_arm_may_fail_and_what_prepares_may_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for code in (1, 2):
        monkeypatch.setitem(COMMANDS, f"exit-{code}", f"tests.unit.launch.commands:exit_{code}")
    arm = Run("clip_seed0", ("exit-1",), "clip", 0)
    assert run_all([arm, Run("e", ("exit-1",), evaluates=tmp_path)], tmp_path) == ["clip_seed0", "e"]
    for run in (Run("start", ("exit-1",)), Run("clip_seed0", ("exit-2",), "clip", 0)):
        with pytest.raises(RunError, match=f"{run.name} ended with exit code {run.command[0][-1]}"):
            run_all([run], tmp_path)


def test_a_study_is_concluded_once_after_all_arms(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    sweep = '[ral-evaluate, sweep=visual_tokens, name=sweep, "+sweep.models={a: ${folder}/a_seed3/model}"]'
    path.write_text(f"{SMALL}conclude:\n  - {sweep}\n")
    study = read_study(path, tmp_path / "runs")
    last = study.runs[-1]
    assert [run.name for run in study.runs].count("sweep") == 1 and last.name == "sweep" and last.arm is None
    assert f"+sweep.models={{a: {tmp_path}/runs/a_seed3/model}}" in last.command
    assert f"runs_dir={tmp_path}/runs" in last.command
    assert last.goes_on_from(tmp_path / "runs" / "a_seed3")
    assert not last.goes_on_from(tmp_path / "runs" / "a_seed")


def test_what_goes_on_from_a_failed_arm_is_left_out_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chain.yaml").write_text(
        "title: A chain\nprepare: []\nseeds: [0]\narms:\n"
        "  first: [ral-rl]\n  second: [ral-rl, 'start_model=${folder}/first_seed${seed}/model']\n  other: [ral-train]\n"
    )
    monkeypatch.setitem(COMMANDS, "ral-rl", "tests.unit.launch.commands:exit_1")
    monkeypatch.setitem(COMMANDS, "ral-train", "tests.unit.launch.commands:exit_0")
    (tmp_path / "chain").mkdir()
    write_run(tmp_path / "chain" / "other_seed0", 0.7, [1.0])
    monkeypatch.setattr(sys, "argv", ["ral-study", str(tmp_path / "chain.yaml"), "--runs-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert ended.value.code == 1
    assert "second_seed0 is skipped: it starts from first_seed0, which failed" in captured.err
    assert "| first | ended before its first step |" in captured.out and "| other | 0.700 |" in captured.out
    assert "error: failed or skipped: first_seed0, second_seed0" in captured.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["distill_quickstart", "--seeds", "one"], "argument --seeds: invalid int value: 'one'"),
        (["nobody"], "no such file; known studies: attention, attention_choices, attention_controls, attention_large"),
        (["{folder}.yaml"], "Is a directory"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.yaml").mkdir()
    given = [argument.replace("{folder}", f"{tmp_path}/a") for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["ral-study", *given, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert (ended.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert captured.err.startswith("error: ") and says in captured.err
