"""Studies: the commands they make, what they refuse, and the table of what came out."""

import json
import sys
from pathlib import Path

import pytest

from launch import study as study_module
from launch.study import STUDIES, Run, Study, read_study, write_table
from ral_system.errors import ConfigError

SMALL = """
title: Two arms
prepare:
  - [ral-train, experiment=smoke, name=start]
common: [ral-rl, experiment=smoke, "start_model=${folder}/start/models/sft"]
arms:
  a: [algorithm=grpo]
  b: [algorithm=ral]
seeds: [3, 4]
metrics: [attention/vas]
"""


def test_prepared_runs_come_first_then_every_seed_of_every_arm(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    study = read_study(path, tmp_path / "runs")
    assert [(run.name, run.arm) for run in study.runs] == [
        ("start", None),
        *((f"{arm}_seed{seed}", arm) for seed in (3, 4) for arm in ("a", "b")),
    ]
    assert study.runs[1].command == (
        "ral-rl",
        "experiment=smoke",
        f"start_model={tmp_path}/runs/start/models/sft",
        "algorithm=grpo",
        f"runs_dir={tmp_path}/runs",
        "name=a_seed3",
        "seed=3",
    )
    again = read_study(path, tmp_path / "runs", seeds=[9], overrides=["algorithm.steps=2"])
    assert [run.name for run in again.runs] == ["start", "a_seed9", "b_seed9"]
    assert all("algorithm.steps=2" in run.command for run in again.runs)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_composes(path: Path, tmp_path: Path, make_config) -> None:
    for run in read_study(path, tmp_path).runs:
        make_config(*run.command[1:])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prepare: []", "title: Field required"),
        ("- a", "the file: Input should be"),
        ("a: [", "while parsing"),
        (SMALL + "colour: red", "colour: Extra inputs are not permitted"),
        (SMALL.replace("seeds: [3, 4]", "seeds: 3"), "seeds: Input should be a valid list"),
        (SMALL.replace("a: [algorithm=grpo]", "a: "), "arms.a: Input should be a valid list"),
        (
            SMALL.replace("- [ral-train, experiment=smoke, name=start]", "- []"),
            "prepare.0: List should have at least 1",
        ),
        (SMALL.replace("ral-rl", "rm"), "rm is not one of ral-train"),
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
    (folder / "summary.json").write_text(json.dumps({"held_out_accuracy_after_rl": accuracy}))
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
    table = write_table(Study("Two arms", runs, ("a", "b"), ("attention/vas",)), tmp_path)
    assert "|  | before | seed 5 | seed 6 | mean | attention/vas |" in table
    assert "| a | 0.500 | 0.600 | 0.800 | **0.700** | 1.5 → 4 |" in table
    assert "| b | 0.500 | 0.900 | 0.700 | **0.800** | - |" in table
    assert (tmp_path / "study.md").read_text() == table
    assert json.loads((tmp_path / "study.json").read_text())["a"][0]["metrics"] == {"attention/vas": [1.0, 3.0]}


def test_a_run_that_fails_ends_the_study_and_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="broken ended with exit code 2"):
        study_module.execute(Run("broken", ("ral-rl", "no.such.key=1")))
    assert "no.such.key" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["distill_quickstart", "--seeds", "one"], "argument --seeds: invalid int value: 'one'"),
        (["nobody"], "no such file; known studies: distill_quickstart"),
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
        study_module.main()
    captured = capsys.readouterr()
    assert (ended.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert captured.err.startswith("error: ") and says in captured.err
