"""Checks of the machine: cores, memory, disk, shared memory, and what Ray needs of them."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from ral_system.launch.doctor.check import Check, Status

GIB = 2**30
_MEMORY_GIB = 8
_DISK_GIB = 5
_SHM_GIB = 1


def check_machine() -> list[Check]:
    """Run all checks of the machine, in the order of the table."""
    return [_cores(), _memory(), _disk(Path.cwd()), _shared_memory(Path("/dev/shm")), _ray_token(), _ray_ports()]


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = max(0.0, cores - os.getloadavg()[0])
    found = f"{cores}, {free:.1f} free over the last minute"
    if free < 1:
        return Check("cores", Status.WARNING, found, "free one core: on a busy machine vLLM takes minutes to start")
    return Check("cores", Status.OK, found)


def _memory() -> Check:
    free = available_memory_bytes() / GIB
    found = f"{free:.1f} GiB available"
    if free < _MEMORY_GIB:
        return Check(
            "memory", Status.WARNING, found, f"free {_MEMORY_GIB} GiB: vLLM, DeepSpeed and Ray run side by side"
        )
    return Check("memory", Status.OK, found)


def available_memory_bytes() -> int:
    """Return the memory that this process may still take: the machine's free memory, or less in a container."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, int(limit) - used)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / GIB
    found = f"{free:.0f} GiB free at {folder}"
    if free < _DISK_GIB:
        return Check("disk", Status.WARNING, found, "runs keep checkpoints: free space, or set runs_dir elsewhere")
    return Check("disk", Status.OK, found)


def _shared_memory(folder: Path) -> Check:
    if not folder.exists():
        return Check("/dev/shm", Status.INFO, "none; Ray keeps its objects in /tmp")
    size = shutil.disk_usage(folder).total / GIB
    if size < _SHM_GIB:
        remedy = "start the container with --shm-size=8g; Ray falls back to the disk otherwise"
        return Check("/dev/shm", Status.WARNING, f"{size:.1f} GiB", remedy)
    return Check("/dev/shm", Status.OK, f"{size:.1f} GiB")


def _ray_token() -> Check:
    mode = os.environ.get("RAY_AUTH_MODE", "")
    default = Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_AUTH_TOKEN"):
        source = "RAY_AUTH_TOKEN"
    elif path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        if not Path(path).is_file():
            remedy = "correct RAY_AUTH_TOKEN_PATH: Ray refuses to start with a wrong one"
            return Check("Ray token", Status.WARNING, f"no file {path}", remedy)
        source = path
    else:
        source = str(default) if default.is_file() else ""
    generate = "ray get-auth-token --generate"
    if mode != "token":
        remedy = f"before ray start and ray job submit: export RAY_AUTH_MODE=token{'' if source else f'; {generate}'}"
        return Check("Ray token", Status.INFO, f"RAY_AUTH_MODE={mode or 'unset'}", remedy)
    if not source:
        return Check("Ray token", Status.WARNING, "RAY_AUTH_MODE=token without a token", generate)
    return Check("Ray token", Status.OK, f"RAY_AUTH_MODE=token, from {source}")


def _ray_ports() -> Check:
    taken = [f"{port} ({what})" for port, what in ((6379, "head"), (8265, "dashboard")) if _listening(port)]
    if taken:
        return Check(
            "Ray ports", Status.INFO, f"in use: {', '.join(taken)}", "a Ray head runs here; ray status shows it"
        )
    return Check("Ray ports", Status.OK, "6379 and 8265 are free")


def _listening(port: int) -> bool:
    with socket.socket() as connection:
        connection.settimeout(1)
        return connection.connect_ex(("127.0.0.1", port)) == 0
