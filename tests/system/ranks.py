"""Start the ranks of a distributed test as processes on this machine, and make one of them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.system.conftest import Commands

TIMEOUT_S = 480


def run_ranks(commands: Commands, file: str, task: Path, world_size: int, *own: str, **extra: str) -> None:
    """Run `file task rank world_size port` once for each rank, and wait; a rank that fails fails the test.

    In forks of the command server, unless the ranks need an interpreter of their own: `own` is its command then.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        commands.start(*own, file, str(task), str(rank), str(world_size), str(port), cwd=task, **extra)
        for rank in range(world_size)
    ]
    try:
        outputs = ["".join(rank.communicate(timeout=TIMEOUT_S)) for rank in ranks]
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
