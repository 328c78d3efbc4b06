"""What this package uses of Ray that Ray does not document. Checked against ray 2.60.0."""

from __future__ import annotations

import subprocess
from functools import partial

from ray._private import ray_constants, services
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


def start_in_own_groups() -> None:
    """Let Ray start each of its processes in a process group of its own.

    A signal to this command's group, as `timeout` sends it, is for this process, which ends Ray. If it ended Ray's
    processes as well, this one would wait for them half a minute, and Ray's own code would then end it.
    """
    services.ConsolePopen = partial(subprocess.Popen, process_group=0)
