"""Starts that are refused: in one line, before torch is imported, and without a folder left behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ral_system.config.commands import PlanCommandConfig
from ral_system.errors import ConfigError, SetupError
from ral_system.launch import train
from ral_system.launch.plan import show_plan
from ral_system.launch.refused import leaving_nothing
from ral_system.launch.train import run_stages
from ral_system.models.folders import check_named
from ral_system.observability import quiet
from ral_system.runs.folder import RunFolder
from tests.composed import compose_config


@pytest.mark.parametrize("module", ["ral_system.launch.train", "ral_system.launch.evaluate", "ral_system.launch.data"])
def test_a_model_that_is_not_there_is_refused_before_torch_is_imported(tmp_path: Path, module: str) -> None:
    (tmp_path / "empty").mkdir()
    for model, says in (("none/of/these", "no such folder; correct the path"), ("./empty", "no config.json there; ")):
        command = [sys.executable, "-X", "importtime", "-m", module, "experiment=smoke", f"start_model={model}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        lines = done.stderr.splitlines()
        imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
        told = [line for line in lines if not line.startswith("import time:")]
        assert (done.returncode, len(told)) == (2, 1), told
        assert told[0].startswith(f"error: start_model={model}: {says}")
        assert "torch" not in imported and "ral_system.config.commands" in imported
        assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ("cluster=local", "rollout.weight_transfer=broadcast"),
            "rollout.weight_transfer=broadcast: needs several processes",
        ),
        (("rollout.weight_transfer=broadcast", "algorithm.max_staleness=1"), r".* algorithm.max_staleness=0 \(now 1\)"),
    ],
)
def test_a_transfer_that_cannot_serve_the_run_is_refused_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], says: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # which the command sets for its process, and
    monkeypatch.setattr(quiet, "silence_third_party", lambda: None)
    given = ("experiment=smoke", *overrides, f"runs_dir={tmp_path}/runs")
    with pytest.raises(ConfigError, match=f"^{says}"):
        run_stages(compose_config(*given))
    with pytest.raises(ConfigError, match=f"^{says}"):
        show_plan(compose_config(*given, kind=PlanCommandConfig))
    assert not list(tmp_path.iterdir())


def test_a_command_for_one_stage_checks_that_stage(tmp_path: Path) -> None:
    config = compose_config("experiment=smoke", "stages=[rl]", "sft.batch=1", f"runs_dir={tmp_path}/runs")
    with pytest.raises(ConfigError, match=r"^sft\.batch=1 is smaller than learner\.world_size=2; raise sft\.batch$"):
        run_stages(config, ("sft",))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("started_from", "same"),
    [("/hub/models--org--model/snapshots/66285546d2b8", "org/model"), ("models/start", "./smoke/models/start")],
)
def test_a_complete_stage_started_from_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started_from: str, same: str
) -> None:
    def goes_on(*arguments: object) -> None:
        raise SetupError("goes on")

    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(quiet, "silence_third_party", lambda: None)
    monkeypatch.setattr(train, "_named_models", goes_on)
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "smoke")
    folder.model("perceive").mkdir(parents=True)
    (folder.model("perceive") / "stage.json").write_text(json.dumps({"steps": 1, "start_model": started_from}))
    with pytest.raises(SetupError, match="goes on"):
        run_stages(compose_config("experiment=smoke", f"start_model={same}", f"runs_dir={tmp_path}"))
    origin = folder.root / started_from
    says = f"perceive in {folder.root} is complete, and started from {origin}; set start_model to that to continue"
    for other in ("org/model-2", "./smoke/models"):
        with pytest.raises(ConfigError, match=re.escape(f"start_model={other}: {says}")):
            run_stages(compose_config("experiment=smoke", f"start_model={other}", f"runs_dir={tmp_path}"))


def refused(root: Path, *files: str) -> None:
    """A start that is refused once it has written these files; empty ones by `name=`."""
    with pytest.raises(SetupError), leaving_nothing(root):
        root.mkdir(parents=True, exist_ok=True)
        for file in (".lock=", "config.yaml", *files):
            path = root / file.rstrip("=")
            path.parent.mkdir(exist_ok=True)
            path.write_text("" if file.endswith("=") else "text")
        raise SetupError("refused")


def test_a_new_folder_without_content_is_removed_with_its_parents(tmp_path: Path) -> None:
    refused(tmp_path / "runs" / "smoke", "metrics.jsonl=", "logs/rollout_0.log=")
    assert not list(tmp_path.iterdir())


def test_content_folders_of_before_and_other_runs_stay(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "smoke"
    refused(root, "metrics.jsonl")
    assert (root / "metrics.jsonl").is_file() and (root / "config.yaml").is_file()
    (tmp_path / "before").mkdir()
    refused(tmp_path / "before")
    assert (tmp_path / "before" / "config.yaml").is_file()
    refused(tmp_path / "runs" / "other")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["smoke"]


def test_a_path_below_a_folder_that_is_here_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_named("start_model", "org/model")  # not looked up
    (tmp_path / "runs").mkdir()
    with pytest.raises(SetupError, match="start_model=runs/nope: no such folder; correct the path"):
        check_named("start_model", "runs/nope")
