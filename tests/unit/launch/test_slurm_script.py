"""The Slurm script with stand-ins for Slurm and Ray: what it does when a job ends, fails, hangs or runs out of time."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ral_system import launch

SCRIPT = Path(launch.__file__).parent / "cluster" / "slurm.sbatch"
STAND_INS = {
    "srun": "exec /bin/sleep 0.1",
    "sleep": "exec /bin/sleep 0.05",
    "getent": 'echo "127.0.0.1 STREAM node1"',
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
        self, *answers: str, nodes: int = 2, given: Sequence[str] = ("experiment=smoke",)
    ) -> subprocess.Popen[str]:
        self.answers.write_text("\n".join(answers) + "\n")
        environment = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "CALLS": str(self.calls),
            "ANSWERS": str(self.answers),
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": str(nodes),
        }
        return subprocess.Popen(["bash", str(SCRIPT), *given], env=environment, stderr=subprocess.PIPE, text=True)

    def run(self, *answers: str, given: Sequence[str] = ("experiment=smoke",)) -> tuple[int, str]:
        with self.start(*answers, given=given) as process:
            _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def called(self, command: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if line.startswith(command)]


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


def test_a_head_that_is_gone_ends_the_job(slurm: Slurm) -> None:
    code, errors = slurm.run(RUNNING, *["connection refused"] * 25)
    assert code == 1
    assert "the dashboard has not answered for five minutes: connection refused" in errors


@pytest.mark.parametrize(
    ("number", "requeued"), [(signal.SIGUSR1, ["scontrol requeue 7"]), (signal.SIGTERM, [])], ids=["limit", "cancelled"]
)
def test_a_time_limit_stops_the_run_and_queues_the_job_again(
    slurm: Slurm, number: signal.Signals, requeued: list[str]
) -> None:
    with slurm.start(*[RUNNING] * 500) as process:
        deadline = time.monotonic() + 30
        while not slurm.calls.exists() or not slurm.called("ray job logs"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == 1
    ended = ("ray job stop", "scontrol requeue")
    ends = [line.split(" --")[0] for line in slurm.calls.read_text().splitlines() if line.startswith(ended)]
    assert ends == ["ray job stop", *requeued]
    assert "--signal=B:USR1@300" in SCRIPT.read_text()
    assert "#SBATCH --requeue" in SCRIPT.read_text()
