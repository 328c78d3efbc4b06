"""What tests of whole runs share: the installed commands as subprocesses with a bound, and what a run left behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import pytest
from xdist.scheduler import LoadScopeScheduling

_INHERITED = ("RAY_", "WANDB_", "HYDRA_", "VLLM_", "PYTHONPATH", "KILL_")
_BIN = Path(sys.executable).parent
_LONGEST = ("ray_", "cluster_nodes", "tensor_parallel", "local_runs", "deepspeed_engine")
_WITH_CLUSTERS = (
    "cluster_nodes",
    "families_in_runs",
    "four_nodes",
    "hf_over_ray",
    "lora_run",
    "ray_actors",
    "ray_job_submit",
    "ray_run",
    "readme_on_a_cluster",
    "tensor_parallel",
)


class ByFile(LoadScopeScheduling):
    """Keeps a file's tests in one process, because they share what they prepare, and all that start Ray clusters in one
    after another.

    (Groups by mark, `--dist loadgroup`, are lost between pytest 9 and xdist 3.8, which still writes to `Item._nodeid`.)
    """

    def _split_scope(self, nodeid: str) -> str:
        name = Path(nodeid.partition("::")[0]).stem.removeprefix("test_")
        return "clusters" if name in _WITH_CLUSTERS else name


@pytest.hookimpl
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Deal the files out to processes."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so no process is left with one at the end."""
    items.sort(key=lambda item: not item.path.stem.removeprefix("test_").startswith(_LONGEST))


class Process(Protocol):
    """What tests use of a running command: `subprocess.Popen`, or a fork of the command server."""

    pid: int
    args: Any

    @property
    def returncode(self) -> int | Any:
        """Exit code, None while it runs; minus the signal's number where one ended it."""
        ...

    def poll(self) -> int | None:
        """The exit code if it has ended."""
        ...

    def communicate(self, *, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it wrote. Raises subprocess.TimeoutExpired."""
        ...

    def send_signal(self, signal: int) -> None:
        """Send it a signal unless it has ended."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class Forked:
    """A command that runs in a fork of the command server."""

    def __init__(self, server: Path, args: Sequence[str], cwd: Path, environment: dict[str, str]) -> None:
        self.args = list(args)
        self.returncode: int | None = None
        self._output = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 (closed with this object)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(str(server))
        request = {"program": args[0], "arguments": args[1:], "cwd": str(cwd), "environment": environment}
        socket.send_fds(self._server, [json.dumps(request).encode() + b"\n"], [f.fileno() for f in self._output])
        self._answers = self._server.makefile("r")
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._server], [], [], 0)[0]:
            self.returncode = int(self._answers.readline())
        return self.returncode

    def communicate(self, *, timeout: float | None = None) -> tuple[str, str]:
        if self.returncode is None:
            if not select.select([self._server], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.poll()
        for file in self._output:
            file.seek(0)
        return self._output[0].read(), self._output[1].read()

    def send_signal(self, signal: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Commands:
    """`commands("ral-train", "experiment=smoke", cwd=…)` runs an installed command to its end.

    In a fork of the command server, whose imports it shares, unless it is `fresh`.
    """

    timeout_s = 400.0

    def __init__(self, folder: Path) -> None:
        self._address = folder / "server"
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.system.command_server", str(self._address)],
            cwd=Path(__file__).parents[2],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def close(self) -> None:
        """End the server."""
        self._server.kill()
        self._server.wait(30)

    def environment(self, **extra: str) -> dict[str, str]:
        """This process's, without settings of the person who runs the tests."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_INHERITED)}
        return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"} | extra

    def start(self, program: str, *args: str, cwd: Path, fresh: bool = False, **extra: str) -> Process:
        """Start a program, or a Python file, in its own session: signals to its group reach nothing else."""
        command, environment = [str(_BIN / program), *args], self.environment(**extra)
        if (program.startswith("ral-") or program.endswith(".py")) and not fresh:
            deadline = time.monotonic() + 120
            while not self._address.exists():
                assert self._server.poll() is None and time.monotonic() < deadline, "the command server did not start"
                time.sleep(0.05)
            return Forked(self._address, command, cwd, environment)
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(
        self,
        program: str,
        *args: str,
        cwd: Path,
        timeout_s: float | None = None,
        fresh: bool = False,
        **extra: str,
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(program, *args, cwd=cwd, fresh=fresh, **extra)
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
        return [{name: v for name, v in line.items() if not is_time(name)} for line in self.lines()]

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


SPEEDS = (
    *(f"learner/{name}" for name in ("tflops", "unshared_tflops", "mfu", "unshared_mfu", "peak_gib")),
    "rollout/first_token_s",
    "step/tokens_per_s_per_device",
)


def is_time(name: str) -> bool:
    """Return whether a metric depends on time or memory, which a second run need not repeat."""
    return (
        name == "time_s" or name.startswith(("time/", "ahead/", "memory/")) or name.endswith("_per_s") or name in SPEEDS
    )


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    found = Commands(tmp_path_factory.mktemp("commands"))
    yield found
    found.close()


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
    """A run whose cold start gets far enough for rewards to differ, so RL has gradients; in one process."""
    return (
        "experiment=smoke",
        "cluster=local",
        "cluster.threads_per_process=1",
        "algorithm=ral_zero",
        "sft.max_steps=40",
        "sft.evaluate_from=40",
        "sft.learning_rate=3e-3",
    )
