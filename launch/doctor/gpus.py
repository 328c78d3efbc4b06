"""Checks of a GPU node for `ral-doctor --gpu`: driver, CUDA and NCCL, memory, networks."""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path

from ral_system.launch.doctor.check import Check, Status, probe

_FREE = 0.95
"""Share of a GPU's memory that is free when nobody uses it."""
_MIN_CAPABILITY = (8, 0)
_QUERY = "name,driver_version,memory.total,memory.free"
_TIMEOUT_S = 60.0
_TORCH = """
import json, torch
found = {"built": torch.version.cuda, "available": torch.cuda.is_available()}
if found["available"]:
    count = torch.cuda.device_count()
    found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    found["capabilities"] = [list(torch.cuda.get_device_capability(i)) for i in range(count)]
    found["peers"] = all(torch.cuda.can_device_access_peer(i, j) for i in range(count) for j in range(count) if i != j)
    torch.ones(1, device="cuda").sum().item()
print(json.dumps(found))
"""


def check_gpus(devices: Path = Path("/sys/class/infiniband")) -> list[Check]:
    """Run all checks of this node's GPUs, in the order of the table. `devices` lists InfiniBand and RoCE adapters."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        remedy = "install the NVIDIA driver; in a container, start it with --gpus all (NVIDIA container toolkit)"
        return [Check("driver", Status.MISSING, "no nvidia-smi", remedy, ("gpu",))]
    return [*_driver_and_memory(smi), *_cuda(), _networks(devices), _locked_memory()]


def _driver_and_memory(smi: str) -> list[Check]:
    command = [smi, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        remedy = "restart the node: its driver hangs"
        return [
            Check("driver", Status.BROKEN, f"nvidia-smi does not answer within {_TIMEOUT_S:.0f} s", remedy, ("gpu",))
        ]
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 3]
    if done.returncode or not rows:
        lines = (done.stdout + done.stderr).strip().splitlines()
        remedy = "load or reinstall the NVIDIA driver, and restart the node"
        return [Check("driver", Status.BROKEN, lines[0] if lines else "no GPUs", remedy, ("gpu",))]
    checks = [Check("driver", Status.OK, rows[0][1])]
    for index, (name, _, total, free) in enumerate(rows):
        if not (free.isdecimal() and total.isdecimal()):  # [N/A] where the GPU shares the host's memory
            checks.append(Check(f"GPU {index}", Status.INFO, f"{name}, memory not reported"))
            continue
        found = f"{name}, {int(free) / 1024:.1f} of {int(total) / 1024:.1f} GiB free"
        used = int(free) < _FREE * int(total)
        remedy = "another process uses it (nvidia-smi names it): end that, or lower rollout.gpu_memory_utilization"
        checks.append(Check(f"GPU {index}", Status.WARNING if used else Status.OK, found, remedy if used else ""))
    return checks


def _cuda() -> list[Check]:
    torch = probe(_TORCH)
    if not torch.ok:
        remedy = "use a driver that serves torch's CUDA version, or install another build of torch"
        return [Check("CUDA", Status.BROKEN, torch.error, remedy, ("gpu",))]
    built = torch.value["built"]
    if not torch.value["available"]:
        found = f"torch is built for CUDA {built} and finds no GPU" if built else "torch is a CPU build"
        remedy = "install the packages of constraints-gpu.txt, or a newer driver (nvidia-smi names the CUDA it serves)"
        return [Check("CUDA", Status.BROKEN, found, remedy, ("gpu",))]
    checks = [Check("CUDA", Status.OK, built), Check("NCCL", Status.OK, torch.value["nccl"])]
    lowest = min(tuple(capability) for capability in torch.value["capabilities"])
    if lowest < _MIN_CAPABILITY:
        remedy = "bfloat16 and vLLM's kernels need 8.0 (A100) or later: set the dtypes to float32, or use newer GPUs"
        checks.append(Check("capability", Status.WARNING, f"{lowest[0]}.{lowest[1]}", remedy))
    if not torch.value["peers"]:
        remedy = "weights between GPUs go through host memory: expect publications to take several times as long"
        checks.append(Check("peer access", Status.WARNING, "not between all GPUs", remedy))
    return checks


def _networks(devices: Path) -> Check:
    states = {}
    for adapter in sorted(devices.iterdir()) if devices.is_dir() else []:
        ports = sorted((adapter / "ports").glob("*/state"))
        states[adapter.name] = any("ACTIVE" in port.read_text() for port in ports)
    if not states:
        return Check("InfiniBand", Status.INFO, "none", "nodes talk over TCP; one node alone needs no network")
    active = [name for name, is_active in states.items() if is_active]
    found = f"{', '.join(active) or 'none'} active of {len(states)}"
    remedy = "" if active else "start the subnet manager, or check the cables: NCCL would use TCP"
    return Check("InfiniBand", Status.OK if active else Status.WARNING, found, remedy)


def _locked_memory() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Check("locked memory", Status.OK, "unlimited")
    found = f"{soft / 2**20:.0f} MiB"
    return Check("locked memory", Status.WARNING, found, "NCCL over InfiniBand pins memory: ulimit -l unlimited")
