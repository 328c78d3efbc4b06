"""`ray job submit` to a real head on loopback, with token authentication, from outside the repository.

The head has no CPUs, as on Kubernetes: the driver runs there, and every actor on the second node.
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.marks import marking, new_mark

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Head:
    dashboard: str
    environment: dict[str, str]
    mark: str


def free_ports(count: int) -> list[int]:
    """All bound at once, so they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def head(commands, marked, end_of, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head of its own: ports, token, home and temporary folder are nobody else's. Ended by its mark, not by name:
    `ray stop` ends every cluster of the machine.
    """
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir(mode=0o700)
    token = home / ".ray" / "auth_token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    mark = new_mark()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as on a node whose environment is activated
    environment = {
        "HOME": str(home),
        "PATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_worker_niceness": "0",
        **marking(mark),
    }
    sessions = tempfile.mkdtemp(prefix="ral_", dir="/tmp")  # short: Ray puts sockets into it
    port, dashboard, agent, client, metrics, second_agent = free_ports(6)
    process = commands.start(
        "ray",
        "start",
        "--head",
        "--block",
        "--num-cpus=0",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
        f"--metrics-export-port={metrics}",
        f"--temp-dir={sessions}",
        "--disable-usage-stats",
        cwd=home,
        **environment,
    )
    address = f"http://127.0.0.1:{dashboard}"
    started = [process]
    try:
        wait_until_it_answers(process, f"{address}/api/version")
        second = commands.start(
            "ray",
            "start",
            "--block",
            f"--address=127.0.0.1:{port}",
            "--num-cpus=2",
            f"--dashboard-agent-listen-port={second_agent}",
            "--disable-usage-stats",
            cwd=home,
            **environment,
        )  # not waited for: the first job does
        started.insert(0, second)
        yield Head(address, environment, mark)
    finally:
        try:
            for each in started:
                each.terminate()
                each.communicate(timeout=60)
        finally:
            for pid in marked(mark):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            end_of(mark, 60.0)
            shutil.rmtree(sessions, ignore_errors=True)


def wait_until_it_answers(process: subprocess.Popen, url: str) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:
            return  # it wants a token
        except OSError:
            assert process.poll() is None, process.communicate()
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"no head at {url} after 180 s")


def submit(commands, head: Head, cwd: Path, *entrypoint: str, options: tuple[str, ...] = (), **changed: str):
    command = ("ray", "job", "submit", "--address", head.dashboard, *options, "--", *entrypoint)
    return commands(*command, cwd=cwd, timeout_s=600, **head.environment | changed)


def test_every_role_in_a_job(commands, left, marked, head: Head, tiny_model: Path, tmp_path: Path) -> None:
    """Two stages, submitted as one job: its log is followed, it leaves a record, and nobody stays behind."""
    overlapped = ("experiment=smoke", "algorithm.max_staleness=1", "sft.autocast=bfloat16")
    start = ("stages=[sft,rl]", f"start_model={tiny_model}")
    done = submit(commands, head, tmp_path, "ral-train", *overlapped, *start, f"runs_dir={tmp_path}/shared")
    assert done.returncode == 0, (done.stdout[-5000:], done.stderr[-3000:])
    assert "RL: ended at step 4 of 4" in done.stdout
    (largest,) = re.findall(r"engines and learner agree: largest log-prob difference (\S+) over", done.stdout)
    assert float(largest) <= 1e-4  # the learner trains with autocast, and is compared without
    assert "succeeded" in done.stdout
    assert "Traceback" not in done.stdout
    assert len(done.stdout.splitlines()) < 60, done.stdout  # our progress and Ray's word about the job, no warnings
    wait_for_the_end_of_actors(marked, head)

    run = left(tmp_path / "shared" / "smoke")
    assert not (tmp_path / "runs").exists()
    assert str(run.folder) in done.stdout
    for name in ("config.yaml", "metrics.jsonl", "rollouts.jsonl", "report.html", "summary.json"):
        assert (run.folder / name).stat().st_size > 0, name
    for role in ("learner_0", "learner_1", "rollout_0", "reference_0", "reward_0"):
        assert (run.folder / "logs" / f"{role}.log").is_file()
    steps = run.rl_steps()
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert all(step["gate/log_prob_diff_max"] <= 1e-4 for step in steps)
    assert [step["pipeline/staleness"] for step in steps] == [0, 1, 0, 1]  # it pauses for the second step's checkpoint
    run.assert_no_prompt_lost_or_repeated()
    assert_summary_and_timeline(run)

    from transformers import AutoModelForImageTextToText, AutoProcessor

    AutoModelForImageTextToText.from_pretrained(run.folder / "model")
    AutoProcessor.from_pretrained(run.folder / "model")


def wait_for_the_end_of_actors(marked, head: Head) -> None:
    deadline = time.monotonic() + 60
    while alive := {pid: name for pid, name in marked(head.mark).items() if re.search(r"ray::\w*Actor|VLLM", name)}:
        assert time.monotonic() < deadline, f"still there 60 s after the job's end: {alive}"
        time.sleep(0.2)


def assert_summary_and_timeline(run) -> None:
    summary = run.summary()
    assert {name for name, value in summary.items() if value is None} <= {"attention_contrast"}  # all rewards are alike
    assert (summary["prompt_id_mismatches"], summary["weight_checksum_failures"]) == (0, 0)
    lanes = {"learner_0", "learner_1", "rollout_0", "reference_0", "reward_0"}
    assert summary["idle_share"].keys() == lanes and all(0 < share < 1 for share in summary["idle_share"].values())
    assert summary["peak_gib"].keys() == lanes | {"controller"}
    assert {"score", "update", "publish"} <= summary["peak_gib"]["learner_0"].keys()
    assert all(0.05 < peak < 16 for peaks in summary["peak_gib"].values() for peak in peaks.values())
    assert "<td>learner 0</td>" in (run.folder / "report.html").read_text()
    events = json.loads((run.folder / "trace.json").read_text())["traceEvents"]
    assert {e["args"]["name"] for e in events if e["ph"] == "M"} == lanes | {"controller"}
    assert {"generate", "score", "update", "load_weights", "publish"} <= {e["name"] for e in events}


@pytest.mark.long
def test_a_key_reaches_the_job_by_a_file_and_not_from_the_submitting_shell(
    commands, head: Head, tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.touch(mode=0o600)
    file.write_text("env_vars: {WANDB_API_KEY: from-the-file}")
    done = submit(
        commands, head, tmp_path, "printenv", "WANDB_API_KEY", "WANDB_ENTITY",
        options=("--runtime-env", str(file)), WANDB_ENTITY="from-the-shell",
    )  # fmt: skip
    assert "from-the-file" in done.stdout
    assert "from-the-shell" not in done.stdout


def test_a_job_that_fails_says_so(commands, head: Head, tmp_path: Path) -> None:
    done = submit(commands, head, tmp_path, "ral-rl", "experiment=smoke", "algorithm.clip=1")
    assert done.returncode != 0
    assert "error: algorithm.clip: unknown key" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("wrong", ["no token", "another token"])
def test_a_stranger_is_refused(commands, head: Head, tmp_path: Path, wrong: str) -> None:
    changed = {"HOME": str(tmp_path)}
    if wrong == "no token":
        changed["RAY_AUTH_MODE"] = "disabled"
    else:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    proof = tmp_path / "ran"
    done = submit(commands, head, tmp_path, "touch", str(proof), **changed)
    assert done.returncode != 0
    assert "auth" in (done.stdout + done.stderr).lower()
    assert not proof.exists()


@pytest.mark.long
def test_a_job_that_is_stopped_or_killed_goes_on_when_submitted_again(
    commands, left, uninterrupted, head: Head, marked, tmp_path: Path
) -> None:
    """The cluster goes on, the roles do not."""
    start = uninterrupted.folder / "models" / "sft"
    overrides = ("experiment=smoke", f"start_model={start}", f"runs_dir={tmp_path}/shared")
    run = left(tmp_path / "shared" / "smoke")
    job = ("--address", head.dashboard)

    def ask(*given: str):
        return commands("ray", "job", *given, cwd=tmp_path, **head.environment)

    def begun(step: int) -> str:
        name = f"ends-{uuid.uuid4().hex[:8]}"
        done = ask(
            "submit", *job, "--submission-id", name, "--no-wait", "--", "ral-rl", *overrides, "algorithm.steps=1000"
        )
        assert done.returncode == 0, done.stderr
        deadline = time.monotonic() + 400
        file = run.folder / "metrics.jsonl"
        while not file.exists() or not any(line["step"] >= step for line in run.whole_lines()):
            if time.monotonic() > deadline:
                pytest.fail(f"step {step} was not seen: {ask('logs', *job, name).stdout[-3000:]}")
            time.sleep(0.05)
        return name

    def wait_for_the_end(within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while left_over := roles(marked(head.mark)):
            assert time.monotonic() < deadline, left_over
            time.sleep(0.1)

    name = begun(step=2)
    stopped = ask("stop", *job, name)
    assert stopped.returncode == 0, (stopped.stdout, stopped.stderr)
    said = ask("logs", *job, name).stdout
    assert "interrupted; run the same command again to continue" in said
    assert "SIGTERM received" not in said and "Traceback" not in said
    wait_for_the_end(60)
    begun(step=run.whole_lines()[-1]["step"] + 2)
    (driver,) = (pid for pid, command in marked(head.mark).items() if "/ral-rl " in command)
    os.kill(driver, signal.SIGKILL)
    wait_for_the_end(20)
    steps = run.whole_lines()[-1]["step"] + 2
    done = submit(commands, head, tmp_path, "ral-rl", *overrides, f"algorithm.steps={steps}")
    assert done.returncode == 0, (done.stdout[-5000:], done.stderr[-3000:])
    assert [step["step"] for step in run.rl_steps()] == list(range(1, steps + 1))
    run.assert_no_prompt_lost_or_repeated()


def roles(processes: dict[int, str]) -> dict[int, str]:
    names = ("LearnerActor", "RolloutActor", "ScorerActor", "RewardActor", "ral_system.rewards", "ral-rl")
    return {pid: command for pid, command in processes.items() if any(name in command for name in names)}
