import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ral_system.runs.checkpoint import Checkpoints
from ral_system.runs.folder import RunFolder


def write_text(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "learner").mkdir()
        (folder / "learner" / "weights").write_text(text)
        (folder / "learner" / "optimizer").write_text(text * 2)

    return write


def saved(folder: Path, steps: tuple[int, ...], keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(folder / "rl", keep)
    for step in steps:
        checkpoints.save(step, {"version": step, "before": {"eval/accuracy": 0.25}}, write_text(f"w{step}"))
    return checkpoints


def weights(checkpoints: Checkpoints) -> tuple[int, str] | None:
    newest = checkpoints.newest()
    return newest and (newest.step, (newest.folder / "learner" / "weights").read_text())


def test_the_newest_is_found_by_step_with_its_state(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "rl", 2).newest() is None
    newest = saved(tmp_path, (9, 100, 20), keep=5).newest()
    assert newest is not None
    assert (newest.step, newest.state) == (100, {"version": 100, "before": {"eval/accuracy": 0.25}})


def test_a_crash_while_writing_leaves_the_previous_one(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, (10,))

    def crash(folder: Path) -> None:
        write_text("half")(folder)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        checkpoints.save(20, {}, crash)
    assert weights(checkpoints) == (10, "w10")
    checkpoints.save(20, {}, write_text("whole"))  # what the crash left is not mixed in
    assert weights(checkpoints) == (20, "whole")
    assert sorted(f.name for f in (tmp_path / "rl").iterdir()) == ["step_000010", "step_000020"]


def test_nothing_is_visible_before_everything_is(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, (10,))

    def look(folder: Path) -> None:
        write_text("new")(folder)
        assert weights(checkpoints) == (10, "w10")

    checkpoints.save(20, {}, look)
    assert weights(checkpoints) == (20, "new")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "learner" / "weights").write_text("w2O"),  # same length, other bytes
        lambda folder: (folder / "learner" / "optimizer").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:40]),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").write_text(""),
    ],
)
def test_a_damaged_one_is_skipped(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    checkpoints = saved(tmp_path, (10, 20))
    damage(tmp_path / "rl" / "step_000020")
    assert weights(checkpoints) == (10, "w10")


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, (10, 20, 30, 40), keep=2)
    assert sorted(f.name for f in (tmp_path / "rl").iterdir()) == ["step_000030", "step_000040"]


def test_a_step_saved_again_replaces_itself(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, (10, 20))
    checkpoints.save(20, {"version": 21}, lambda folder: (folder / "other").write_text("x"))
    newest = checkpoints.newest()
    assert newest is not None and newest.state == {"version": 21}
    assert sorted(f.name for f in newest.folder.iterdir()) == ["manifest.json", "other"]


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    saved(tmp_path, (10,))
    manifest = json.loads((tmp_path / "rl" / "step_000010" / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["learner/optimizer", "learner/weights"]


def test_clearing_leaves_none(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, (10,))
    checkpoints.clear()
    checkpoints.clear()
    assert checkpoints.newest() is None


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_get_the_mode_that_the_umask_asks_for(tmp_path: Path, umask: int, mode: int) -> None:
    def write_for_the_owner(folder: Path) -> None:
        (folder / "learner").mkdir()
        save_file({"weight": torch.zeros(1)}, folder / "learner" / "weights.safetensors")
        (folder / "learner" / "engine.json").write_text("{}")

    before = os.umask(umask)
    try:
        Checkpoints(tmp_path / "rl", 2).save(1, {}, write_for_the_owner)
        RunFolder(tmp_path).complete("sft", {}, write_for_the_owner)
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 6
    assert {file.name: file.stat().st_mode & 0o777 for file in files} == {file.name: mode for file in files}
