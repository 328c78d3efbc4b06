from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import wandb
from wandb.sdk.lib import urls
from wandb.sdk.lib.wbauth import wbnetrc

from ral_system.observability import wandb_sink
from ral_system.observability.jsonl import read_lines
from ral_system.observability.metrics import MetricsLog
from ral_system.observability.wandb_sink import WandbSink, resolve_mode
from tests.unit.observability.test_metrics_log import config
from tests.unit.observability.wandb_server import WandbServer

KEY = "k" * 40
Asked = Literal["auto", "online", "offline", "disabled"]


@pytest.fixture
def netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine on which W&B is neither set up nor logged in; the file that `wandb login` would write."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # it reads its settings once per process
    yield tmp_path / "netrc"
    wandb.teardown()


@pytest.fixture
def server(netrc: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server that this machine is logged in to."""
    with WandbServer() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield running
        running.shutdown()
        thread.join()


def log_once(folder: Path, asked: Asked, *steps: int, failed: bool = False) -> None:
    sink = WandbSink(folder, config(asked), "my run", {"seed": 3})
    for step in steps:
        sink.write("rl", step, {"reward/total": step / 10})
    sink.close(failed=failed)


# --- the mode --------------------------------------------------------------------------------------------------------


def test_auto_is_online_after_wandb_login(netrc: Path) -> None:
    assert resolve_mode("auto").name == "offline"
    wbnetrc.write_netrc_auth(host=urls.DEFAULT_BASE_URL, api_key=KEY)  # what `wandb login` calls
    assert resolve_mode("auto").name == "online"


@pytest.mark.parametrize(
    ("asked", "variables", "name", "problem"),
    [
        ("auto", {}, "online", False),
        ("online", {}, "online", False),
        ("offline", {}, "offline", False),
        ("disabled", {}, "disabled", False),
        ("auto", {"WANDB_MODE": "offline"}, "offline", False),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline", False),
        ("online", {"WANDB_MODE": "offline"}, "offline", False),
        ("offline", {"WANDB_MODE": "online"}, "offline", False),
        ("disabled", {"WANDB_MODE": "online"}, "disabled", False),
        ("online", {"WANDB_MODE": "disabled"}, "disabled", False),
        ("auto", {"WANDB_DISABLED": "true"}, "disabled", False),
        ("auto", {"WANDB_DISABLED": "false"}, "online", False),
        ("online", {"WANDB_API_KEY": ""}, "offline", True),
        ("auto", {"WANDB_API_KEY": "", "WANDB_MODE": "online"}, "offline", True),
        ("auto", {"WANDB_API_KEY": "short"}, "offline", True),
        ("online", {"WANDB_MODE": "ofline"}, "disabled", True),
    ],
)
def test_of_configuration_and_environment_the_one_that_shares_less_counts(
    netrc: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: Asked,
    variables: dict[str, str],
    name: str,
    problem: bool,
) -> None:
    for variable, value in ({"WANDB_API_KEY": KEY} | variables).items():
        monkeypatch.setenv(variable, value)
    mode = resolve_mode(asked)
    assert (mode.name, mode.problem) == (name, problem)
    assert bool(mode.remedy) == problem


def test_offline_in_wandbs_settings_file_counts(netrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (netrc.parent / "wandb").mkdir()
    (netrc.parent / "wandb" / "settings").write_text("[default]\nmode = offline\n")  # what `wandb offline` writes
    assert resolve_mode("online").name == "offline"


@pytest.mark.parametrize("asked", ["auto", "online"])
def test_nothing_is_sent_when_the_environment_says_offline(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: Asked
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_once(tmp_path / "run", asked, 1, 2)
    assert server.requests == 0
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_disabled_leaves_nothing_behind(server: WandbServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    log_once(tmp_path / "run", "online", 1)
    assert (server.requests, (tmp_path / "run").exists()) == (0, False)


# --- what arrives ----------------------------------------------------------------------------------------------------


def test_an_online_run_says_where_it_is_and_has_sections_and_step_axes(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MetricsLog(tmp_path / "run", config("auto"), "my run", {"seed": 3}) as log:
        log.write("sft", 1, {"supervised/loss": 0.5, "eval/accuracy": 0.25})
        log.write("rl", 0, {"eval/accuracy": 0.75})
        log.write("rl", 1, {"reward/total": 0.5, "a/nan": float("nan")})
    ((identity, run),) = server.runs.items()
    assert run.rows() == [
        {"sft/step": 1, "sft/supervised/loss": 0.5, "sft/eval/accuracy": 0.25},
        {"rl/step": 0, "eval/accuracy": 0.75},
        {"rl/step": 1, "reward/total": 0.5},
    ]
    metrics = {metric["1"]: metric for metric in run.config["_wandb"]["value"]["m"]}
    axes = {name: list(metrics)[metric["5"] - 1] for name, metric in metrics.items() if "5" in metric}
    assert axes == {
        "sft/supervised/loss": "sft/step",
        "sft/eval/accuracy": "sft/step",
        "eval/accuracy": "rl/step",
        "reward/total": "rl/step",
    }
    assert metrics["eval/accuracy"]["7"] == metrics["sft/eval/accuracy"]["7"] != metrics["reward/total"]["7"] == []
    assert run.config["seed"]["value"] == 3
    assert run.exit_codes == [0]
    assert capsys.readouterr().err == f"W&B: {server.url}/entity/project/runs/{identity}\n"


def test_the_environment_wins_over_our_defaults(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = {"PROJECT": "theirs", "ENTITY": "team", "NAME": "name", "RUN_GROUP": "g", "JOB_TYPE": "j", "TAGS": "a,b"}
    for name, value in theirs.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    log_once(tmp_path / "run", "auto", 1)
    (run,) = server.runs.values()
    first = run.upserts[0]
    keys = ("project", "entity", "displayName", "groupName", "jobType", "tags")
    assert [first[key] for key in keys] == ["theirs", "team", "name", "g", "j", ["a", "b"]]
    assert list((tmp_path / "elsewhere" / "wandb").glob("run-*"))
    assert not (tmp_path / "run" / "wandb").exists()


def test_our_defaults_without_an_environment(server: WandbServer, tmp_path: Path) -> None:
    log_once(tmp_path / "run", "auto", 1)
    (run,) = server.runs.values()
    assert [run.upserts[0][key] for key in ("project", "displayName")] == ["none", "my run"]
    assert list((tmp_path / "run" / "wandb").glob("run-*"))


def test_a_resumed_run_continues_and_a_failed_one_is_shown_as_failed(server: WandbServer, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), MetricsLog(tmp_path, config("auto"), "my run", {}) as log:
        log.write("rl", 1, {"reward/total": 0.1})
        raise KeyboardInterrupt
    log_once(tmp_path, "auto", 2)
    (run,) = server.runs.values()
    assert [row["rl/step"] for row in run.rows()] == [1, 2]
    assert run.exit_codes == [1, 0]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["run_folder", "wandb_dir"])
def test_the_printed_command_uploads_all_offline_files_as_one_run(
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    elsewhere: bool,
) -> None:
    folder = tmp_path / "my runs" / "run"
    if elsewhere:
        monkeypatch.setenv("WANDB_DIR", str(tmp_path))
        log_once(tmp_path / "another", "offline", 7)
        capsys.readouterr()
    log_once(folder, "offline", 1, 2)
    log_once(folder, "offline", 3)
    first, second = capsys.readouterr().err.splitlines()
    assert first == second
    command = second.removeprefix("W&B: logged offline; upload with: ")
    script = command.replace("wandb sync", f"{sys.executable} -m wandb sync", 1)
    done = subprocess.run(["sh", "-c", script], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = server.runs.values()
    assert [row["rl/step"] for row in run.rows()] == [1, 2, 3]


def test_an_unreachable_server_costs_a_line_and_the_run_is_offline(
    netrc: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_sink, "_START_TIMEOUT_S", 1.0)
    with caplog.at_level(logging.WARNING):
        log_once(tmp_path / "run", "auto", 1)
    (line,) = [record.message for record in caplog.records if record.name == wandb_sink.__name__]
    assert "cannot be reached" in line
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    identity = (tmp_path / "run" / "wandb-run-id").read_text()
    assert file.name == f"run-{identity}.wandb"  # what is uploaded later continues the same run
    assert "wandb sync" in capsys.readouterr().err


# --- failures --------------------------------------------------------------------------------------------------------


class FailingRun:
    offline, url = False, "http://w"

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, row: dict[str, float]) -> None:
        raise RuntimeError("service\ndied")

    def finish(self, exit_code: int) -> None:
        pass


def test_wandb_that_cannot_start_costs_one_line(
    netrc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no\nservice")

    monkeypatch.setattr(wandb_sink, "_start", fail)
    with caplog.at_level(logging.WARNING), MetricsLog(tmp_path, config("offline"), "run", {}) as log:
        log.write("rl", 1, {"a/b": 1.0})
        log.write("rl", 2, {"a/b": 1.0})
    assert len(caplog.messages) == 1
    assert "no service" in caplog.messages[0]
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 2


def test_wandb_that_dies_midway_is_let_go(
    netrc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_sink, "_start", lambda *_: FailingRun())
    with caplog.at_level(logging.WARNING), MetricsLog(tmp_path, config("offline"), "run", {}) as log:
        for step in range(3):
            log.write("rl", step, {"a/b": 1.0})
    assert len(caplog.messages) == 1
