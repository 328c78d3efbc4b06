"""What tests of whole runs share: the installed commands as subprocesses with a bound, and what a run left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

_INHERITED = ("RAY_", "WANDB_", "HYDRA_", "VLLM_", "PYTHONPATH", "KILL_")
_BIN = Path(sys.executable).parent


class Commands:
    """`commands("ral-train", "experiment=smoke", cwd=…)` runs an installed command to its end."""

    timeout_s = 400.0

    def environment(self, **extra: str) -> dict[str, str]:
        """This process's, without settings of the person who runs the tests."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_INHERITED)}
        return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"} | extra

    def start(self, program: str, *args: str, cwd: Path, **extra: str) -> subprocess.Popen[str]:
        """In a session of its own, so that a signal to its group reaches nothing else."""
        return subprocess.Popen(
            [str(_BIN / program), *args],
            cwd=cwd,
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(
        self, program: str, *args: str, cwd: Path, timeout_s: float | None = None, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(program, *args, cwd=cwd, **extra)
        try:
            out, err = process.communicate(timeout=timeout_s or self.timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate(timeout=30)
            pytest.fail(f"{program} {' '.join(args)} did not end; stdout: {out[-2000:]} stderr: {err[-4000:]}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


class Left:
    """What a run left in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lines(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def whole_lines(self) -> list[dict[str, Any]]:
        """Metrics of a run that is still writing."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def rl_steps(self) -> list[dict[str, Any]]:
        """The training steps of the RL stage."""
        return [line for line in self.lines() if line["stage"] == "rl" and "prompts/first" in line]

    def timeless_metrics(self) -> list[dict[str, Any]]:
        """All that a second run must repeat."""
        return [{name: v for name, v in line.items() if not _is_time(name)} for line in self.lines()]

    def weights(self, model: str = "model") -> bytes:
        return (self.folder / model / "model.safetensors").read_bytes()

    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    def assert_no_prompt_lost_or_repeated(self) -> None:
        steps = self.rl_steps()
        assert steps
        assert steps[0]["prompts/first"] == 0
        for before, after in pairwise(steps):
            assert after["prompts/first"] == before["prompts/end"]
            assert after["step"] == before["step"] + 1

    def assert_equal(self, other: Left, models: Sequence[str] = ("models/perceive", "models/sft", "model")) -> None:
        """Bit for bit, except for times."""
        for model in models:
            assert self.weights(model) == other.weights(model), f"{model} differs"
        assert self.timeless_metrics() == other.timeless_metrics()
        assert self.lines("rollouts.jsonl") == other.lines("rollouts.jsonl")


def _is_time(name: str) -> bool:
    return name == "time_s" or name.startswith(("time/", "ahead/")) or name.endswith("_per_s")


@pytest.fixture(scope="session")
def commands() -> Commands:
    return Commands()


@pytest.fixture(scope="session")
def marked() -> Callable[[str], dict[int, str]]:
    """Processes that have a mark in their environment, as all have that descend from a marked one: pid → command."""

    def find(mark: str) -> dict[int, str]:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended, or is not ours
                if mark.encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(folder.name)] = command[:200]
        return found

    return find


@pytest.fixture(scope="session")
def end_of(marked: Callable[[str], dict[int, str]]) -> Callable[[str, float], None]:
    """Wait for every process with a mark to end; kill what is left and fail when the time is up."""

    def wait(mark: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while (alive := marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not alive, f"still there after {timeout_s:.0f} s: {alive}"

    return wait


@pytest.fixture(scope="session")
def uninterrupted(commands: Commands, with_signal: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Left:
    """A finished run in one process."""
    cwd = tmp_path_factory.mktemp("uninterrupted")
    done = commands("ral-train", *with_signal, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return Left(cwd / "runs" / "smoke")


@pytest.fixture(scope="session")
def left() -> type[Left]:
    return Left


@pytest.fixture(scope="session")
def with_signal() -> tuple[str, ...]:
    """A run whose cold start gets far enough for rewards to differ, so that RL has gradients; in one process."""
    return (
        "experiment=smoke",
        "cluster=local",
        "cluster.threads_per_process=1",
        "algorithm=ral_zero",
        "sft.max_steps=40",
        "sft.evaluate_from=40",
        "sft.learning_rate=3e-3",
    )
