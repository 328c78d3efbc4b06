"""What this package uses of Ray that Ray does not document. Checked against ray 2.60.0."""

from __future__ import annotations

from ray._private import ray_constants
from ray._private import worker as ray_worker


def bind_to_loopback(only: bool) -> None:
    """Let every server of the next local cluster bind to loopback, or as Ray would.

    It is Ray's switch for "this machine only", its default on Windows and macOS. Giving `ray.init` the loopback address
    is not enough: Ray maps that back to the machine's public one.
    """
    ray_constants.ENABLE_RAY_CLUSTER = not only


def bound_to_loopback() -> bool:
    """Return whether `bind_to_loopback` is in force."""
    return not ray_constants.ENABLE_RAY_CLUSTER


def mute_reports() -> None:
    """Silence Ray's own reports of failed calls and dead actors."""
    ray_worker.print_to_stdstream = lambda *args, **kwargs: None
