"""The Slurm scripts with stand-ins for Slurm and Ray: what they do when a run ends, fails, hangs or is out of time."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ral_system import launch

CLUSTER = Path(launch.__file__).parent / "cluster"
SCRIPT, ONE_GPU = CLUSTER / "slurm.sbatch", CLUSTER / "slurm-1gpu.sbatch"
UNTIL_THE_SCRIPT_ENDS = """
exec >/dev/null 2>&1
while kill -0 "$PPID"; do /bin/sleep 0.05; done
"""
STAND_INS = {
    "srun": """
echo "srun $*" >>"$CALLS"
env >"$CALLS.environment"
case "$*" in *"$LOST"*) exit 7 ;; esac
"""
    + UNTIL_THE_SCRIPT_ENDS,
    "sleep": "exec /bin/sleep 0.05",
    "getent": '[ "$NAMED" ] && echo "$NAMED STREAM node1"',
    "hostname": 'echo "$INTERFACES "',
    "ral-train": """
trap 'echo stopped >>"$CALLS"; exit 130' TERM
env >"$CALLS.environment"
echo "ral-train $*" >>"$CALLS"
[ "$CODE" ] && exit "$CODE"
"""
    + UNTIL_THE_SCRIPT_ENDS,
    "scontrol": 'if [ "$1" = show ]; then echo node1; echo node2; else echo "scontrol $*" >>"$CALLS"; fi',
    "ray": """
echo "ray $*" >>"$CALLS"
case "$1 $2" in
  "job submit")
    mkdir "$ANSWERS.refused" 2>/dev/null || exit 0
    echo "No available agent"
    exit 1 ;;
  "job status")
    [ "$3 $5" = "--address ral-7-0" ] && exit 1  # asked while it is submitted: not known
    sed -i 1d "$ANSWERS.rest" 2>/dev/null || cp "$ANSWERS" "$ANSWERS.rest"
    head -n 1 "$ANSWERS.rest" ;;
esac
""",
}
RUNNING = "Status for job 'ral-7-0': RUNNING"


class Slurm:
    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.answers = folder, folder / "calls", folder / "answers"
        (folder / "bin").mkdir()
        for name, body in STAND_INS.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / "bin" / name).chmod(0o755)

    def start(
        self, *answers: str, given: Sequence[str] = ("experiment=smoke",), script: Path = SCRIPT, **changed: str
    ) -> subprocess.Popen[str]:
        self.answers.write_text("\n".join(answers) + "\n")
        environment = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "CALLS": str(self.calls),
            "ANSWERS": str(self.answers),
            "NAMED": "10.0.0.5",
            "INTERFACES": "172.16.0.9 fe80::1",
            "LOST": "no process",
            "CODE": "",
            "HOME": "/home/user",
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
        } | changed
        return subprocess.Popen(["bash", str(script), *given], env=environment, stderr=subprocess.PIPE, text=True)

    def run(
        self, *answers: str, given: Sequence[str] = ("experiment=smoke",), script: Path = SCRIPT, **changed: str
    ) -> tuple[int, str]:
        with self.start(*answers, given=given, script=script, **changed) as process:
            _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def called(self, command: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if line.startswith(command)]

    def wait_for(self, command: str) -> None:
        deadline = time.monotonic() + 30
        while not self.calls.exists() or not self.called(command):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def exported(self, name: str) -> str:
        lines = Path(f"{self.calls}.environment").read_text().splitlines()
        (value,) = (line.partition("=")[2] for line in lines if line.startswith(f"{name}="))
        return value


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def test_a_lost_log_connection_does_not_end_the_job(slurm: Slurm) -> None:
    code, _ = slurm.run(*[RUNNING] * 5, "connection refused", RUNNING, "Job 'ral-7-0' succeeded")
    assert code == 0
    assert len(slurm.called("ray job logs")) >= 5  # each ended at once, and was begun again
    refused, submitted = slurm.called("ray job submit")
    assert refused == submitted
    assert "--no-wait -- ral-train experiment=smoke runs_dir=" in submitted
    assert not list(slurm.folder.glob(".ray-token*"))


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ([], "experiment=ral_qwen2_5_vl_7b_8gpu runs_dir={folder}/runs"),
        (["-m", "seed=0,1"], "-m seed=0,1 runs_dir={folder}/runs"),
        (["runs_dir=/scratch/mine", "seed=1"], "runs_dir=/scratch/mine seed=1"),
        (["seed=1", "++runs_dir=/scratch/mine"], "seed=1 ++runs_dir=/scratch/mine"),
    ],
)
def test_a_run_folder_that_is_given_is_kept(slurm: Slurm, given: list[str], command: str) -> None:
    assert slurm.run("Job 'ral-7-0' succeeded", given=given)[0] == 0
    submitted = slurm.called("ray job submit")[-1]
    assert submitted.endswith(f" -- ral-train {command.format(folder=slurm.folder)}")


@pytest.mark.parametrize("answer", ["Job 'ral-7-0' failed", "Job 'ral-7-0' was stopped"])
def test_a_run_that_fails_fails_the_job(slurm: Slurm, answer: str) -> None:
    assert slurm.run(RUNNING, answer)[0] == 1
    assert slurm.called("scontrol requeue") == []


@pytest.mark.parametrize(
    ("named", "address"),
    [("10.0.0.5", "10.0.0.5"), ("127.0.1.1", "172.16.0.9"), ("", "172.16.0.9")],
    ids=["by name", "Debian's loopback", "unknown name"],
)
def test_workers_join_at_an_address_that_is_not_loopback(slurm: Slurm, named: str, address: str) -> None:
    assert slurm.run("Job 'ral-7-0' succeeded", NAMED=named)[0] == 0
    head, workers = slurm.called("srun")
    assert f"--nodelist=node1 ray start --head --num-cpus=4 --node-ip-address={address} --port=6379" in head
    assert f"--exclude=node1 --kill-on-bad-exit=1 --wait=30 ray start --address={address}:6379 --num-cpus=4" in workers


def test_a_head_with_loopback_alone_is_one_line(slurm: Slurm) -> None:
    code, errors = slurm.run(NAMED="127.0.1.1", INTERFACES="fe80::1")
    assert (code, errors) == (
        1,
        "node node1 has no IPv4 address except loopback: give its name an address in DNS or /etc/hosts\n",
    )
    assert not slurm.calls.exists()


@pytest.mark.parametrize(("lost", "process"), [("--exclude=", "workers"), ("--head", "head")])
def test_a_lost_node_stops_the_run_and_ends_the_job(slurm: Slurm, lost: str, process: str) -> None:
    code, errors = slurm.run(*[RUNNING] * 500, LOST=lost)
    assert code == 1
    assert f"ray start on the {process} has ended with exit code 7\n" in errors
    assert len(slurm.called("ray job stop")) == len(slurm.called("ray job logs"))  # once, if it was submitted
    assert slurm.called("scontrol requeue") == []


@pytest.mark.parametrize(("script", "command"), [(SCRIPT, "srun"), (ONE_GPU, "ral-train")])
@pytest.mark.parametrize(
    ("given", "home", "token"),
    [
        ({}, "{folder}/.huggingface", "/home/user/.cache/huggingface/token"),
        ({"HF_HOME": "/shared/hf"}, "/shared/hf", "/shared/hf/token"),
    ],
    ids=["default", "given"],
)
def test_models_are_beside_the_runs_unless_hf_home_is_given(
    slurm: Slurm, script: Path, command: str, given: dict[str, str], home: str, token: str
) -> None:
    assert slurm.run("Job 'ral-7-0' succeeded", script=script, CODE="0", **given)[0] == 0
    assert slurm.called(command)
    assert slurm.exported("HF_HOME") == home.format(folder=slurm.folder)
    assert slurm.exported("HF_TOKEN_PATH") == token


@pytest.mark.parametrize("code", [0, 2])
def test_a_run_on_one_gpu_ends_with_its_exit_code(slurm: Slurm, code: int) -> None:
    assert slurm.run(script=ONE_GPU, given=(), CODE=str(code)) == (code, "")
    command = f"ral-train experiment=ral_qwen2_5_vl_3b_1gpu runs_dir={slurm.folder}/runs"
    assert slurm.calls.read_text() == f"{command}\n"


def test_a_head_that_is_gone_ends_the_job(slurm: Slurm) -> None:
    code, errors = slurm.run(RUNNING, *["connection refused"] * 25)
    assert code == 1
    assert "the dashboard has not answered for five minutes: connection refused" in errors


@pytest.mark.parametrize(
    ("number", "requeued"), [(signal.SIGUSR1, ["scontrol requeue 7"]), (signal.SIGTERM, [])], ids=["limit", "cancelled"]
)
@pytest.mark.parametrize(
    ("script", "running", "stopped"), [(SCRIPT, "ray job logs", "ray job stop"), (ONE_GPU, "ral-train", "stopped")]
)
def test_a_time_limit_stops_the_run_and_queues_the_job_again(
    slurm: Slurm, script: Path, running: str, stopped: str, number: signal.Signals, requeued: list[str]
) -> None:
    with slurm.start(*[RUNNING] * 500, script=script) as process:
        slurm.wait_for(running)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == 1
    ended = (stopped, "scontrol requeue")
    ends = [line.split(" --")[0] for line in slurm.calls.read_text().splitlines() if line.startswith(ended)]
    assert ends == [stopped, *requeued]
    assert "--signal=B:USR1@300" in script.read_text()
    assert "#SBATCH --requeue" in script.read_text()
