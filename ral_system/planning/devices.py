"""Devices that a plan is made for: memory, compute rate and bandwidths."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ral_system.config.commands import TrainConfig
from ral_system.config.plan import PlanConfig
from ral_system.errors import ConfigError
from ral_system.models.flops import FlopCounter
from ral_system.observability.work import PEAK_TFLOPS
from ral_system.planning.passes import OutlinedPolicy, new_policy, pass_flops, text_flops, update_pass
from ral_system.types import MicroBatch


@dataclass(frozen=True, slots=True)
class Device:
    """One device. Compute rate and memory bandwidth are what a run is assumed to reach; links have their peak."""

    name: str
    kind: str
    """cpu or cuda"""
    bytes: int
    """Memory of the device."""
    flops_per_s: float
    """Floating-point operations per second in a pass over a model."""
    bytes_per_s: float
    """Memory bandwidth that decoding reaches."""
    link_bytes_per_s: float
    """Bandwidth to another device of the node, one way."""
    host_bytes_per_s: float
    """Bandwidth to the host's memory."""
    decode_s: float
    """Overhead of a decoding step beside compute and memory traffic: an estimate."""
    node_bytes: int
    """Host memory of a node that processes may use."""
    node_cores: float | None = None
    """CPU cores of a node; None if unknown."""

    @property
    def usable(self) -> int:
        """Bytes that a plan may fill: on a GPU less than all, since PyTorch's allocator leaves gaps between tensors."""
        return self.bytes if self.kind == "cpu" else int(USABLE * self.bytes)


USABLE = 0.95
"""Fraction of a GPU's memory that a plan may fill: an assumption."""
CONTEXT = 2**30
"""GPU memory of a process beside its tensors, also while it sleeps: libraries, CUDA graphs, NCCL. An assumption."""


_LARGEST_TRIED = 5e11
"""Floating-point operations of the largest update that is timed: some seconds on a CPU."""

_GPUS = {  # GiB, TB/s of memory, GB/s to a neighbour, GB/s to the host; of the SXM boards, from their data sheets
    "h100": (79.6, 3.35, 450, 55),
    "h200": (140.4, 4.8, 450, 55),
    "a100": (79.3, 2.04, 300, 25),
}
_HOST_GIB = {"h100": 1740 / 8, "h200": 1850 / 8, "a100": 1150 / 8}
"""Host memory for each GPU. a3-highgpu-8g, ND96isr_H200_v5 and p4de.24xlarge have least of those with eight."""
LEFT_BY_RAY = 0.95
"""Share of a node's memory beyond which Ray ends processes, by its default."""


def gpu(plan: PlanConfig) -> Device:
    """Return the GPU that a plan is made for."""
    name = plan.device or "h100"
    gib, terabytes, link, host = _GPUS[name]
    return Device(
        name=name.upper() if plan.gpu_gib is None else f"{name.upper()} with {plan.gpu_gib:g} GiB",
        kind="cuda",
        bytes=int((plan.gpu_gib or gib) * 2**30),
        flops_per_s=plan.compute * PEAK_TFLOPS[name.upper()] * 1e12,
        bytes_per_s=plan.bandwidth * terabytes * 1e12,
        link_bytes_per_s=link * 1e9,
        host_bytes_per_s=host * 1e9,
        decode_s=3e-3,
        node_bytes=int(LEFT_BY_RAY * (plan.host_gib or plan.node_gpus * _HOST_GIB[name]) * 2**30),
        node_cores=plan.host_cores,
    )


def this_cpu(config: TrainConfig, policy: OutlinedPolicy, samples: MicroBatch) -> Device:
    """Measure the speed of this machine, by an update of `samples` and by a copy in memory.

    Raises ConfigError for an update too large to try.
    """
    counter = FlopCounter(policy.model, policy.family)
    text = text_flops(counter, samples)
    vision = pass_flops(counter, policy.family, samples) - text
    of_text, of_vision = policy.passes_of_an_update()
    flops = of_text * text + max(1, of_vision) * vision
    if flops > _LARGEST_TRIED:
        raise ConfigError(
            f"plan.device=cpu: an update is tried on this machine, and one of {flops / 1e12:,.3g} TFLOP is too large; "
            "set plan.device to h100, h200 or a100"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(config.cluster.threads_per_process)
    try:
        cpu = torch.device("cpu")
        real = new_policy(policy.family, config.learner.dtype, cpu, config, trained=True)
        batch, scores = policy.collate(samples), {s.id: policy.blank_scores(s) for s in samples}
        seconds = _median(lambda: update_pass(real, batch, samples, scores, config, policy.read))
        buffer = torch.empty(1 << 26)
        copied = 2 * buffer.nbytes / _median(buffer.clone)
    finally:
        torch.set_num_threads(before)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("this CPU", "cpu", memory, flops / seconds, copied, copied, copied, 1e-2, memory)


def _median(call: Callable[[], object], times: int = 3) -> float:
    call()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found)
