"""A transformers engine over Ray: the run is the one in a single process."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    "ends", [pytest.param((4,), id="straight"), pytest.param((2, 4), id="continued", marks=pytest.mark.long)]
)
def test_a_run_over_ray_repeats_the_one_in_one_process(
    commands, left, with_signal, uninterrupted, tmp_path: Path, ends: tuple[int, ...]
) -> None:
    """Bit for bit, also if it ends after two steps and goes on with new processes."""
    over_ray = ("cluster=ray", "rollout=hf", "learner=torch")
    rl = [override for override in with_signal if override != "cluster=local" and not override.startswith("sft.")]
    start = f"start_model={uninterrupted.folder / 'models' / 'sft'}"
    for steps in ends:
        settings = (*rl, *over_ray, start, "evaluation.every=0", f"algorithm.steps={steps}")
        done = commands("ral-rl", *settings, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "1 torch rank, 1 hf engine" in done.stderr
    run = left(tmp_path / "runs" / "smoke")
    run.assert_no_prompt_lost_or_repeated()
    summary = run.summary()
    assert (summary["prompt_id_mismatches"], summary["weight_checksum_failures"]) == (0, 0)
    assert {"generate", "load_weights"} <= summary["peak_gib"]["rollout_0"].keys()
    assert run.weights() == uninterrupted.weights()
    trained, expected = (
        [line for line in of.timeless_metrics() if line["stage"] == "rl" and "prompts/first" in line]
        for of in (run, uninterrupted)
    )
    for ours, theirs in zip(trained, expected, strict=True):
        assert ours["gate/tensors_verified"] > 0 and ours["gate/log_prob_diff_max"] <= 1e-4
        names = {name for name in ours if not name.startswith("eval/")}
        assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}
