"""`ral-plan` as a command: what it prints, and how it refuses."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.planning.models import write_7b

pytestmark = pytest.mark.system


def test_a_run_that_fits_is_printed_and_nothing_is_left(commands: Any, tmp_path: Path) -> None:
    small = ("algorithm.prompts_per_step=4", "plan.text_tokens=20", "plan.response_tokens=17")
    done = commands("ral-plan", "experiment=quickstart", "plan.device=cpu", *small, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "A step: 4 prompts of 9 visual and 20 other tokens, 8 responses each of 17 tokens, 4 updates" in done.stdout
    for shown in (
        "learner × 2",
        "rollout × 1",
        "reference × 1",
        "updates",
        "30 steps take",
        "on this CPU",
        "learner in sft × 2",
    ):
        assert shown in done.stdout
    assert "drawn" in done.stdout and "all stages take" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_run_that_does_not_fit_is_printed_and_refused(commands: Any, tmp_path: Path, tiny_model: Path) -> None:
    model = write_7b(tmp_path / "model", tiny_model, layers=1)
    small = ("plan.medium=none", "plan.response_tokens=16", "cluster.gpus_per_learner=0.05", "learner.world_size=1")
    recipe = ("experiment=ral_qwen2_5_vl_7b_8gpu", f"model.path={model}")
    done = commands("ral-plan", *recipe, *small, cwd=tmp_path)
    assert done.returncode == 2 and "learner × 1" in done.stdout
    assert done.stderr.startswith("error: the learner in sft needs ") and done.stderr.count("\n") == 1
    assert "GiB of 3.78 on an H100; lower learner.max_tokens" in done.stderr
    elsewhere = commands("ral-train", *recipe, "plan.device=h200", cwd=tmp_path)
    assert elsewhere.returncode == 2
    assert "ral-train does not read it; ral-plan does; remove it" in elsewhere.stderr
