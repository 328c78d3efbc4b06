"""The RayJob of kuberay.yaml as shipped and for one GPU, and the size of its worker."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ral_system import launch

FILE = Path(launch.__file__).parent / "cluster" / "kuberay.yaml"


def ray_job(*, one_gpu: bool = False) -> dict[str, Any]:
    """Parse the file; for one GPU after the command in its first comment."""
    text = FILE.read_text()
    if one_gpu:
        (command,) = re.findall(r"^#   (sed .*) kuberay\.yaml \| kubectl apply -f -$", text, re.MULTILINE)
        done = subprocess.run(["bash", "-c", command], input=text, capture_output=True, text=True, check=True)
        text = done.stdout
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


@dataclass(frozen=True, slots=True)
class Worker:
    """Limits of a worker pod, which are also what it requests."""

    cores: float
    gpus: int
    memory_gib: float
    """Everything, with what is in /dev/shm."""
    shm_gib: float

    @classmethod
    def of(cls, job: dict[str, Any]) -> Worker:
        """Read the only group's."""
        (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (shm,) = (volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if volume["name"] == "shm")
        limits = container["resources"]["limits"]
        assert container["resources"]["requests"] == limits
        return cls(float(limits["cpu"]), int(limits["nvidia.com/gpu"]), _gib(limits["memory"]), _gib(shm))

    @property
    def overrides(self) -> tuple[str, ...]:
        """The node that `ral-plan` compares a run with: memory for processes is what /dev/shm leaves."""
        return f"plan.host_cores={self.cores:g}", f"plan.host_gib={self.memory_gib - self.shm_gib:g}"


def _gib(amount: str) -> float:
    assert amount.endswith("Gi")
    return float(amount[:-2])
