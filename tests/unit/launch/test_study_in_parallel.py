"""Runs of a study at the same time, each after those that it needs."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ral_system.launch.study.files import COMMANDS, Run, read_study
from ral_system.launch.study.processes import RunError, run_all

CHAIN = """
title: A chain
prepare:
  - [ral-perceive, name=first]
  - [ral-sft, name=second]
arms:
  a: [ral-rl]
  b: [ral-rl, "start_model=${folder}/a_seed${seed}/model"]
seeds: [0, 1]
evaluate: []
conclude:
  - [ral-evaluate, sweep=visual_tokens, name=last]
"""


def test_a_run_waits_for_what_prepares_and_for_the_models_that_it_goes_on_from(tmp_path: Path) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(CHAIN)
    after = {run.name: run.after for run in read_study(path, tmp_path / "runs").runs}
    prepared = {"first", "second"}
    assert after["first"] == set() and after["second"] == {"first"}
    assert after["a_seed1"] == prepared
    assert after["b_seed1"] == after["a_seed1_evaluation"] == prepared | {"a_seed1"}
    assert after["b_seed1_evaluation"] == prepared | {"b_seed1"}
    assert after["last"] == after.keys() - {"last"}


def test_two_runs_are_under_way_together_and_a_third_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "meet", "tests.unit.launch.commands:meet")
    both, third = tmp_path / "both", tmp_path / "third"
    both.mkdir()
    third.mkdir()
    runs = [
        Run("a", ("meet", str(both), "a", "2"), "a", 0),
        Run("b", ("meet", str(both), "b", "2"), "b", 0),
        Run("c", ("meet", str(both), "c", "3"), "c", 0, after=frozenset("ab")),
    ]
    assert run_all(runs, tmp_path, jobs=2) == []
    said = capsys.readouterr().out
    assert "[3/3] meet" in said and "; 1 to start, about 0 min left" in said
    assert said.index("[3/3]") > said.index("a took") and said.index("[3/3]") > said.index("b took")
    assert (tmp_path / "logs" / "c.log").read_text() == "met\n"


def test_out_of_time_what_runs_is_ended_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "slow", "tests.unit.launch.commands:slow_to_end")
    monkeypatch.setitem(COMMANDS, "quick", "tests.unit.launch.commands:exit_0")
    runs = [
        Run("slow", ("slow", str(tmp_path)), "slow", 0),
        Run("waits", ("quick",), "waits", 0, after=frozenset(["slow"])),
    ]
    assert run_all(runs, tmp_path, jobs=2, limit_s=1.5) == []
    said = capsys.readouterr()
    assert said.err == "out of time with 2 of 2 runs to go\n" and "[2/2]" not in said.out
    assert not (tmp_path / "started").exists() or (tmp_path / "ended").read_text() == "tidily"
    monkeypatch.setitem(COMMANDS, "slow", "tests.unit.launch.commands:exit_0")
    assert run_all(runs, tmp_path, jobs=2) == [] and "[2/2]" in capsys.readouterr().out


def test_a_failure_shows_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "ral-rl", "tests.unit.launch.commands:nothing_of_the_kind")
    with pytest.raises(RunError, match="start ended with exit code 1"):
        run_all([Run("start", ("ral-rl",))], tmp_path, jobs=2)
    assert "ImportError: cannot import name 'nothing_of_the_kind'" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["study", "command", "study at once"])
def test_a_study_that_is_told_to_stop_starts_nothing_more_and_stops_what_runs(tmp_path: Path, target: str) -> None:
    """Even if the commands end well, or the study is killed. A command that is stopped also stops the study."""
    code = (
        "from pathlib import Path; from ral_system.launch.study import files, processes;"
        "files.COMMANDS['ral-rl'] = 'tests.unit.launch.commands:ends_well_when_told';"
        f"runs = [files.Run(name, ('ral-rl', {str(tmp_path)!r})) for name in ('one', 'two', 'three')];"
        f"processes.run_all(runs, Path({str(tmp_path)!r}), jobs=2)"
    )
    study = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(pids := [int(file.name.partition("_")[2]) for file in tmp_path.glob("pid_*")]) < 2:
        assert study.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(*{"study": (study.pid, signal.SIGTERM), "command": (pids[0], signal.SIGINT)}.get(target, (study.pid, 9)))
    said = study.communicate(timeout=60)[1]
    assert study.returncode == -9 if target == "study at once" else "KeyboardInterrupt" in said
    assert len(list(tmp_path.glob("pid_*"))) == 2
    while any(map(is_running, pids)):
        assert target == "study at once" and time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
