from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.launch.jobs import HydraTask
from ral_system.launch.train import run_stages

COMMAND = """
import time
from pathlib import Path

from ral_system.config.commands import TrainConfig
from ral_system.launch.cli import run_with_config
from ral_system.errors import GateError

def task(config):
    if config.seed == 3:
        raise GateError("three is refused")
    if config.seed == 4:
        raise KeyError("bug")
    if config.seed == 5:
        print("waiting", flush=True)
        time.sleep(60)
    with Path("ran").open("a") as file:
        file.write(config.name + "\\n")
    return config.seed / 10

if __name__ == "__main__":
    run_with_config(task, TrainConfig, about="Test.")
"""

SWEEPER = """
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

class Returned(BasicSweeper):
    def sweep(self, arguments):
        batches = super().sweep(arguments)
        Path("returned").write_text(" ".join(str(job.return_value) for batch in batches for job in batch))
"""


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    (folder / "command.py").write_text(COMMAND)
    return subprocess.Popen(
        [sys.executable, "command.py", *overrides],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{folder}:{Path(__file__).parents[3]}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *overrides: str) -> tuple[int, str]:
    process = start(folder, *overrides)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def ran(folder: Path) -> list[str]:
    return (folder / "ran").read_text().splitlines()


def test_every_job_has_its_own_folder_a_first_line_and_a_result(tmp_path: Path) -> None:
    code, errors = run(tmp_path, "-m", "experiment=smoke", "algorithm=ral,grpo", "seed=0,1")
    assert code == 0, errors
    names = [f"smoke_algorithm-{algorithm}_seed-{seed}" for algorithm in ("ral", "grpo") for seed in (0, 1)]
    assert ran(tmp_path) == names
    assert f"job 3 of 4: algorithm=grpo seed=0 → runs/{names[2]}\n" in errors
    assert len(re.findall(r"^job \d of 4: .* done, held-out accuracy 0\.[01]00, \d+ s$", errors, re.MULTILINE)) == 4
    assert errors.endswith("\n4 jobs: 4 done, 0 failed\n")
    assert not (tmp_path / "multirun").exists()
    assert [file.name for file in tmp_path.glob("runs/sweeps/*/*")] == ["multirun.yaml"]


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["seed=0,1"], ["ral_seed0", "ral_seed1"]),  # which the default name has
        pytest.param(
            ["seed=0", "algorithm.steps=1,2"],
            ["ral_seed0_algorithm.steps-1", "ral_seed0_algorithm.steps-2"],
            marks=pytest.mark.long,
        ),
        (["name=mine", "seed=0,1"], ["mine_seed-0", "mine_seed-1"]),
        pytest.param(["name=a,b"], ["a", "b"], marks=pytest.mark.long),
        (["name=x_${seed}", "algorithm=ral,grpo", "seed=0"], ["x_0_algorithm-ral", "x_0_algorithm-grpo"]),
        pytest.param(["name=x_${hydra:job.num}", "algorithm=ral,grpo"], ["x_0", "x_1"], marks=pytest.mark.long),
        (
            ["algorithm/policy_loss=clip,gspo", "name=x"],
            ["x_algorithm-policy_loss-clip", "x_algorithm-policy_loss-gspo"],
        ),
    ],
)
def test_a_name_has_the_swept_values_once(tmp_path: Path, overrides: list[str], names: list[str]) -> None:
    code, errors = run(tmp_path, "-m", *overrides)
    assert (code, ran(tmp_path)) == (0, names), errors


def test_values_that_no_folder_can_be_called_by_stay_apart(tmp_path: Path) -> None:
    values = "start_model=/a/b,/a-b," + "x" * 300
    assert run(tmp_path, "-m", "name=x", values)[0] == 0
    first = ran(tmp_path)
    assert len(set(first)) == 3
    assert all(re.fullmatch(r"x_start_model-[\w.-]{,140}", name) for name in first)
    assert run(tmp_path, "-m", "name=x", values)[0] == 0
    assert ran(tmp_path) == [*first, *first]


@pytest.mark.parametrize(("seed", "says"), [(3, "three is refused"), (4, "bug")])
def test_a_job_that_fails_does_not_end_the_others(tmp_path: Path, seed: int, says: str) -> None:
    code, errors = run(tmp_path, "-m", "name=x", f"seed={seed},0,1")
    assert (code, ran(tmp_path)) == (1, ["x_seed-0", "x_seed-1"])
    assert re.search(rf"\n3 jobs: 2 done, 1 failed\n  job 1 of 3: seed={seed}: failed: .*{says}.*\n$", errors)
    assert errors.count("job 2 of 3: seed=0: done") == 1
    assert errors.count("Traceback") == (seed == 4)


def test_a_single_run_fails_in_one_line(tmp_path: Path) -> None:
    assert run(tmp_path, "seed=3") == (1, "error: three is refused\n")
    assert run(tmp_path, "seed=1") == (0, "")


def test_an_interrupt_ends_the_sweep(tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "name=x", "seed=5,0")
    assert process.stdout and process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("interrupted; run the same command again to continue\n")
    assert not (tmp_path / "ran").exists()


def test_a_file_sweeps_over_keys_that_the_command_reads(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    for name, key in (("own", "seed"), ("foreign", "sweep.axis"), ("misspelt", "algorithm.stepz")):
        text = f"# @package _global_\nhydra: {{sweeper: {{params: {{{key}: '1,2'}}}}}}\n"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    given = ("-m", "--config-dir", str(tmp_path), "name=x")
    code, errors = run(tmp_path, *given, "experiment=foreign")
    said = "hydra.sweeper.params.sweep.axis=1,2: command.py does not read it; ral-evaluate does; remove it"
    assert (code, errors) == (2, f"error: {said}\n")
    code, errors = run(tmp_path, *given, "experiment=misspelt")
    assert code == 2 and "error: algorithm.stepz: unknown key; did you mean algorithm.steps?" in errors
    code, errors = run(tmp_path, *given, "experiment=own")
    assert (code, ran(tmp_path)) == (0, ["x_seed-1", "x_seed-2"]), errors


def test_a_sweeper_gets_what_the_task_returns(tmp_path: Path) -> None:
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "own.py").write_text(SWEEPER)
    code, errors = run(tmp_path, "-m", "name=x", "seed=1,2", "hydra.sweeper._target_=hydra_plugins.own.Returned")
    assert code == 0, errors
    assert (tmp_path / "returned").read_text() == "0.1 0.2"


def test_launchers_can_send_the_task_to_other_processes() -> None:
    pickle.loads(pickle.dumps(HydraTask(partial(run_stages, stages=("rl",)), TrainConfig, ["seed=0,1"])))  # noqa: S301  our own
