"""Join the cluster that a run belongs to, or start one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import AuthenticationError, RaySystemError

from ral_system.actors.ray_internals import (
    bind_to_loopback,
    bound_to_loopback,
    mute_reports,
    start_in_own_groups,
)
from ral_system.errors import SetupError

LOOPBACK = "127.0.0.1"
_CONNECT_TIMEOUT_S = 10.0


def start_or_join(address: str | None) -> None:
    """Connect to the cluster at `address`, else to that of the submitted job (RAY_ADDRESS), else start one on loopback.

    Does nothing when connected already. Raises SetupError.
    """
    if ray.is_initialized():
        return
    _mute()
    with _signal_handlers_kept():
        _connect(address)


def _connect(address: str | None) -> None:
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address is None:
            # Token authentication is on by itself: RAY_AUTH_MODE, set here after the import, would only half arrive.
            bind_to_loopback(True)
            start_in_own_groups()
            # Ray runs workers at nice 15, where anything else on the machine starves them.
            os.environ.setdefault("RAY_worker_niceness", "0")
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        else:
            _check_listening(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as error:
        raise SetupError(
            f"the Ray cluster at {address or LOOPBACK} refused the authentication token; set RAY_AUTH_MODE=token and "
            "give this user the cluster's token (`ray get-auth-token` on the head node prints it)"
        ) from error
    except (ConnectionError, RaySystemError, RuntimeError, ValueError, OSError) as error:
        raise _explain(address, error) from error


def nodes_may_join() -> bool:
    """Return whether the cluster can still grow; the one that `start_or_join` started on loopback cannot."""
    return not bound_to_loopback()


def stop() -> None:
    """Disconnect; ends the cluster if this process started it."""
    ray.shutdown()
    bind_to_loopback(False)


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restore this process's signal handlers afterwards: Ray's for SIGTERM prints a C++ stack trace and exits.

    Raises KeyboardInterrupt if a SIGTERM comes meanwhile, as our own handler would.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # neither Ray nor we can set any here
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as exit:
        raise KeyboardInterrupt from exit
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _mute() -> None:
    """Silence Ray's own reports of failed calls and dead actors, which `actors.group` raises as one-line errors."""
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    mute_reports()


def _check_listening(address: str) -> None:
    """Raise ConnectionError or OSError within seconds: Ray itself tries an address that nobody serves for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


def _explain(address: str | None, error: Exception) -> SetupError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    lowered = str(error).lower()
    if "unauthenticated" in lowered or "authentication" in lowered:
        return SetupError(f"the Ray cluster at {address} requires a valid token ({reason}); set RAY_AUTH_MODE=token")
    if "in use" in lowered:
        return SetupError(f"Ray cannot start: a port is in use ({reason}); end the other process, or run `ray stop`")
    if address is None:
        return SetupError(f"Ray cannot start on this machine ({reason}); see /tmp/ray/session_latest/logs")
    return SetupError(
        f"no Ray cluster answers at {address} ({reason}); start one with `ray start --head`, correct cluster.address "
        "or unset RAY_ADDRESS"
    )
