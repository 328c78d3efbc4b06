import json
from pathlib import Path

import pytest

from ral_system.errors import GATE_COUNTERS, GateError, WeightSyncError
from ral_system.runs.folder import RunFolder
from ral_system.runs.summary import write_summary

RUN = {"name": "run", "algorithm": "ral", "seed": 0}


@pytest.mark.parametrize(
    ("failed", "counts"),
    [
        (None, dict.fromkeys(GATE_COUNTERS)),
        (WeightSyncError("engine 0"), dict.fromkeys(GATE_COUNTERS, 0) | {"weight_checksum_failures": 1}),
        (GateError("sample 3"), dict.fromkeys(GATE_COUNTERS, 0) | {"other_failures": 1}),
    ],
    ids=["before_rl", "weights", "others"],
)
def test_the_gate_that_ended_a_run_is_counted_in_whatever_stage(
    tmp_path: Path, failed: GateError | None, counts: dict[str, int | None]
) -> None:
    write_summary(RunFolder(tmp_path), **RUN, failed=failed)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {name: summary[name] for name in GATE_COUNTERS} == counts
    assert summary["held_out_accuracy_after_rl"] is None


def test_versions_and_all_commands_are_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_summary(folder, **RUN)
    assert json.loads(folder.summary.read_text())["versions"] is None
    for command, version in (("ral-train a", "1"), ("ral-rl b", "2")):
        record = {"command": command, "git_commit": "abc", "git_dirty": False, "versions": {"torch": version}}
        folder.add_command(record)
    write_summary(folder, **RUN)
    summary = json.loads(folder.summary.read_text())
    assert {name: summary[name] for name in ("versions", "git_commit", "git_dirty", "commands")} == {
        "versions": {"torch": "2"},
        "git_commit": "abc",
        "git_dirty": False,
        "commands": ["ral-train a", "ral-rl b"],
    }
