"""The settings that lower what a role holds on its GPU, for plans, and for runs whose GPU is full after all."""

from __future__ import annotations

import re

from ral_system.errors import SetupError

REMEDIES = {
    "learner": (
        "lower learner.max_tokens, set learner.gradient_checkpointing=true, learner.zero_stage=3 or learner.offload, "
        "or raise learner.world_size or learner.sequence_parallel"
    ),
    "rollout": "raise rollout.tensor_parallel and cluster.gpus_per_rollout, or lower rollout.max_model_len",
    "reference": (
        "lower learner.max_tokens, raise cluster.gpus_per_scorer (with cluster.placement=disaggregated), or set "
        "learner.lora, which needs no reference"
    ),
    "teacher": (
        "lower teacher.max_tokens, raise cluster.gpus_per_teacher (with cluster.placement=disaggregated), or choose a "
        "smaller teacher"
    ),
}
_TOO_LITTLE = re.compile(
    r"Free memory on device \S+ \(([\d.]+)/([\d.]+) GiB\) on startup is less than .*\(([\d.]+), ([\d.]+) GiB\)",
    re.DOTALL,
)
"""How vLLM 0.32 refuses to start an engine."""
_RUNNING = REMEDIES | {"rollout": "lower rollout.gpu_memory_utilization or rollout.max_sequences"}


def full_device(error: Exception, process: str) -> SetupError | None:
    """Return PyTorch's or vLLM's error for a full GPU as a line with what to change; None for any other error.

    PyTorch's is known by its name, since not every process has it. `process`: role and rank, for example `learner 0`.
    """
    if isinstance(error, ValueError) and (found := _TOO_LITTLE.match(str(error))):
        free, total, share, wanted = found.groups()
        return SetupError(
            f"{process}: {free} of {total} GiB of its GPU are free, and rollout.gpu_memory_utilization={share} asks "
            f"for {wanted}; lower it, or end the other processes on the GPU (`nvidia-smi` lists them)"
        )
    kind = type(error)
    if kind.__name__ != "OutOfMemoryError" or not kind.__module__.startswith("torch"):
        return None
    tried = re.search(r"Tried to (allocate [\d.]+ \w+)", str(error))
    remedy = _RUNNING.get(process.partition(" ")[0], REMEDIES["learner"])
    detail = f" (it could not {tried.group(1)})" if tried else ""
    return SetupError(f"{process}: its GPU is full{detail}; {remedy}; ral-plan prints what each role holds")
