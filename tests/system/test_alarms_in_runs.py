"""Alarms of whole runs in one process: said, recorded, and stopping on request."""

import re
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("staleness", "consecutive", "stops_at"), [(0, 3, 3), pytest.param(1, 1, 2, marks=pytest.mark.long)]
)
def test_an_alarm_rings_and_a_run_that_it_stopped_goes_on_like_one_that_it_did_not(
    commands, left, tiny_model: Path, tmp_path: Path, staleness: int, consecutive: int, stops_at: int
) -> None:
    """Responses of an untrained model do not end, so all are cut. With batches made ahead a stop waits for a pause."""
    overrides = [
        "experiment=smoke",
        "cluster=local",
        "cluster.threads_per_process=1",
        f"start_model={tiny_model}",
        f"alarms.consecutive={consecutive}",
        f"algorithm.max_staleness={staleness}",
        "evaluation.blind=true",
    ]
    done = commands("ral-rl", *overrides, "name=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, stopped = (left(tmp_path / "runs" / name) for name in ("whole", "stopped"))
    assert [step["alarm/truncation"] for step in whole.rl_steps()] == [step >= consecutive for step in (1, 2, 3, 4)]
    asked = [line for line in whole.lines() if line["stage"] == "rl" and "eval/accuracy" in line]
    assert [line["step"] for line in asked] == [0, 2, 4]
    assert all(line["eval/blind_gap"] == line["eval/accuracy"] - line["eval/accuracy_black"] for line in asked)
    assert [step.get("health/blind_runaway") is not None for step in whole.rl_steps()] == [False, True, False, False]
    said = re.findall(r"RL: alarm truncation: .* above alarms.truncation=0.015 for \d steps?; raise", done.stderr)
    assert len(said) == 1
    assert 'data-alarm="truncation"' in (whole.folder / "report.html").read_text()

    stop = commands("ral-rl", *overrides, "name=stopped", "alarms.action=stop", cwd=tmp_path)
    assert stop.returncode == 1
    last = stop.stderr.splitlines()[-1]
    assert "alarms.action=stop: alarm truncation: " in last
    assert last.endswith(f"to go on, add alarms.action=log or other limits; step {stops_at} is saved")
    assert len(stopped.rl_steps()) == stops_at and stopped.summary()["rl_steps"] is None
    assert 'data-alarm="truncation"' in (stopped.folder / "report.html").read_text()

    done = commands("ral-rl", *overrides, "name=stopped", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing with alarms.action=log (was stop)" in done.stderr
    assert "alarm truncation" not in done.stderr  # it rang before
    stopped.assert_equal(whole, models=("model",))
