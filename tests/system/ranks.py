"""Start the ranks of a distributed test as processes on this machine, and make one of them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 480
_REPOSITORY = Path(__file__).parents[2]


def run_ranks(file: str, task: Path, world_size: int) -> None:
    """Run `python file task rank world_size port` once for each rank, and wait; a rank that fails fails the test."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, file, str(task), str(rank), str(world_size), str(port)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [rank.communicate(timeout=TIMEOUT_S)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(outputs)


def become_rank(rank: int, world_size: int, port: int) -> None:
    """Make this process one of the ranks, with one thread and nothing on its output but its own errors."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    import torch

    from ral_system.observability.quiet import silence_third_party

    silence_third_party()
    torch.set_num_threads(1)
