"""Runs that differ in nothing but where engines and learners sit."""

from pathlib import Path
from typing import Any

from tests.system.conftest import is_time
from tests.system.marks import marking, new_mark


def trained_alike(commands: Any, left: Any, end_of: Any, folder: Path, *command: str) -> list[Any]:
    """Train three steps on devices of their own and on shared ones: the same metrics, bit for bit. What they left.

    Nothing of Ray, vLLM or DeepSpeed outlives either.
    """
    runs, steps, mark = [], {}, new_mark()
    for placement in ("disaggregated", "colocated"):
        done = commands(*command, f"name={placement}", f"cluster.placement={placement}", cwd=folder, **marking(mark))
        assert done.returncode == 0, done.stderr
        end_of(mark, 60.0)
        run = left(folder / "runs" / placement)
        run.assert_no_prompt_lost_or_repeated()
        assert run.summary()["weight_checksum_failures"] == 0
        runs.append(run)
        steps[placement] = run.rl_steps()
    assert len(steps["colocated"]) == 3
    for apart, together in zip(steps["disaggregated"], steps["colocated"], strict=True):
        assert together["time/move_s"] > 0
        names = {name for name in apart if not is_time(name)}
        assert names > {"policy/kl", "gate/tensors_verified", "attention/entropy", "reward/total"}
        assert {name: together[name] for name in names} == {name: apart[name] for name in names}
    return runs
