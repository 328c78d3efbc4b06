import socket

import pytest

from tests.system.ranks import become_rank


@pytest.fixture(scope="session")
def only_rank() -> None:
    """Make this process the one rank of DeepSpeed's learner."""
    pytest.importorskip("deepspeed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    become_rank(0, 1, port)
