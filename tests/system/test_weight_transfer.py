"""Runs whose weights travel in files end as those whose weights travel in memory."""

import pytest

from ral_system.registry import WEIGHT_TRANSFERS

pytestmark = pytest.mark.system


def test_the_way_that_weights_travel_changes_nothing(commands, left, with_signal, uninterrupted, tmp_path) -> None:
    done = commands("ral-train", *with_signal, "rollout.weight_transfer=files", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = left(tmp_path / "runs" / "smoke")
    run.assert_equal(uninterrupted)
    assert run.summary()["weight_tensors_verified"] == uninterrupted.summary()["weight_tensors_verified"] > 0
    kept = sorted(int(file.stem) for file in (run.folder / "weights").iterdir())
    assert kept == [3, 4]  # of the last step and the one before
    unknown = commands("ral-train", *with_signal, "rollout.weight_transfer=post", "name=other", cwd=tmp_path)
    assert unknown.returncode == 2
    assert (
        f"rollout.weight_transfer=post: no such weight transfer; choose one of {', '.join(WEIGHT_TRANSFERS.names)}"
        in unknown.stderr
    )
    assert not (tmp_path / "runs" / "other").exists()
