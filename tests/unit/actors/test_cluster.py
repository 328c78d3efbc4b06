import os
import signal
import sys

import pytest

pytest.importorskip("ray")

import ray
from ray._private import services

from ral_system.actors.cluster import _connect, _explain, _signal_handlers_kept
from ral_system.actors.ray_internals import bind_to_loopback


@pytest.mark.parametrize(
    ("address", "error", "says"),
    [
        (
            None,
            OSError("[Errno 98] Address already in use"),
            "a port is in use ([Errno 98] Address already in use)",
        ),
        (None, RuntimeError("no space\nmore"), "Ray cannot start on this machine (no space); see"),
        ("host:6379", ConnectionError("refused"), "no Ray cluster answers at host:6379 (refused); start one with"),
        (
            "host:6379",
            RuntimeError("Unauthenticated: x"),
            "requires a valid token (Unauthenticated: x); set RAY_AUTH_MODE",
        ),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_line_with_the_remedy(
    address: str | None, error: Exception, says: str
) -> None:
    message = str(_explain(address, error))
    assert says in message
    assert "\n" not in message


def test_ray_does_not_keep_our_signals() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(ConnectionError), _signal_handlers_kept():
        for number in numbers:
            signal.signal(number, lambda *_: None)  # as Ray does before it connects
        raise ConnectionError
    assert [signal.getsignal(number) for number in numbers] == before


def test_rays_exit_at_sigterm_is_an_interruption() -> None:
    with pytest.raises(KeyboardInterrupt), _signal_handlers_kept():
        sys.exit(signal.SIGTERM)


def test_a_signal_to_our_group_does_not_reach_rays_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start_a_process(**_: object) -> None:
        command = [sys.executable, "-c", "input()"]
        started.append(services.start_ray_process(command, "test", fate_share=False, pipe_stdin=True).process)

    monkeypatch.setattr(services, "ConsolePopen", services.ConsolePopen)  # restored afterwards
    monkeypatch.setattr(ray, "init", start_a_process)
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    try:
        _connect(None)
        assert os.getpgid(started[0].pid) == started[0].pid != os.getpgrp()
    finally:
        bind_to_loopback(False)
        for process in started:
            process.communicate(timeout=30)
