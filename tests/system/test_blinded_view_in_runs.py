"""Whole runs on what pictures change: metrics are there, and a run that was continued is the one that was not."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("algorithm", "metric"),
    [
        ("papo", "perception/loss"),
        pytest.param("vppo", "perception/kl_kept", marks=pytest.mark.long),
        pytest.param("vgpo", "perception/token_factor", marks=pytest.mark.long),
    ],
)
def test_a_continued_run_finds_the_same(
    commands, left, tiny_model: Path, tmp_path: Path, algorithm: str, metric: str
) -> None:
    overrides = [
        *("experiment=smoke", "cluster=local", "cluster.threads_per_process=1", f"start_model={tiny_model}"),
        f"algorithm={algorithm}",
    ]
    for name, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        done = commands("ral-rl", *overrides, f"name={name}", f"algorithm.steps={steps}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    whole, parts = (left(tmp_path / "runs" / name) for name in ("whole", "parts"))
    seen = [{k: v for k, v in step.items() if k.startswith("perception/")} for step in whole.rl_steps()]
    assert len(seen) == 4 and all(metric in step for step in seen)
    assert algorithm == "vgpo" or all(step["perception/kl"] > 0 for step in seen)
    assert [{k: step[k] for k in seen[0]} for step in parts.rl_steps()] == seen
    assert parts.weights("model") == whole.weights("model")
