"""Settings that lower the GPU memory of a role, for plans, and for runs that are out of memory; and what to run where
torchvision does not fit torch.
"""

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
_OF_VLLM = {
    r"Free memory on device \S+ \(([\d.]+)/([\d.]+) GiB\) on startup is less than .*\(([\d.]+), ([\d.]+) GiB\)": (
        "{} of {} GiB of its GPU are free, and rollout.gpu_memory_utilization={} asks for {}; lower it, or end the "
        "other processes on the GPU (`nvidia-smi` lists them)"
    ),
    r"Available memory on node \S+ \(([\d.]+)/([\d.]+) GiB\) on startup is less than .*\([\d.]+, ([\d.]+) GiB\)": (
        "{} of {} GiB of its host's memory are free, and with rollout.memory_gib=null vLLM asks for {}; set it to the "
        "size of the key-value cache, in GiB"
    ),
    r"Available memory on node \S+ \(([\d.]+)/([\d.]+) GiB\) on kv cache allocation .* for kv \(([\d.]+) GiB\)": (
        "{} of {} GiB of its host's memory are free, and rollout.memory_gib={} asks for more; lower it, or end other "
        "processes on the host"
    ),
    r"No available memory for the cache blocks": (
        "nothing is left for the key-value cache; raise rollout.gpu_memory_utilization or rollout.tensor_parallel, or, "
        "for an engine on CPU, rollout.memory_gib"
    ),
    r"model's max seq len \((\d+)\), \(([\d.]+) GiB KV cache is needed, .* memory \(([\d.]+) GiB\)": (
        "rollout.max_model_len={} needs a key-value cache of {} GiB, and has {}; lower it, raise "
        "rollout.gpu_memory_utilization or rollout.tensor_parallel, or, for an engine on CPU, rollout.memory_gib"
    ),
}
"""How vLLM 0.32 refuses to start an engine, and what a user should read instead."""
_OF_A_RANK = re.compile(r"OutOfMemoryError: |Worker failed with error '\w+ out of memory")
"""PyTorch's error for a full GPU in another process of the engine: as it starts, and later."""
_RUNNING = REMEDIES | {"rollout": "lower rollout.gpu_memory_utilization or rollout.max_sequences"}


def full_device(error: Exception, process: str) -> SetupError | None:
    """Return PyTorch's or vLLM's error for a full GPU as a line with what to change; None for any other error.

    PyTorch's is known by its name, since not every process has it. `process`: role and rank, for example `learner 0`.
    """
    text = str(error)
    if isinstance(error, (ValueError, RuntimeError)):
        for words, line in _OF_VLLM.items():
            if found := re.search(words, text, re.DOTALL):
                return SetupError(f"{process}: {line.format(*found.groups())}")
    kind = type(error)
    here = kind.__name__ == "OutOfMemoryError" and kind.__module__.startswith("torch")
    if not here and not (isinstance(error, RuntimeError) and _OF_A_RANK.match(text)):
        return None
    tried = re.search(r"Tried to (allocate [\d.]+ \w+)", text)
    remedy = _RUNNING.get(process.partition(" ")[0], REMEDIES["learner"])
    detail = f" (it could not {tried.group(1)})" if tried else ""
    return SetupError(f"{process}: its GPU is full{detail}; {remedy}; ral-plan prints what each role holds")


def unfit_torchvision(error: BaseException) -> SetupError | None:
    """Return the failure as a line with the command to run; None for any other error.

    transformers hides it behind errors such as "Could not import module 'AutoProcessor'".
    """
    found: BaseException | None = error
    while found is not None and not str(found).startswith("operator torchvision::"):
        found = found.__cause__ or found.__context__
    if found is None:
        return None
    return SetupError(
        f"torchvision does not fit the installed torch ({found}); run `ral-doctor --fix` in this Python environment, "
        "on a cluster on every node"
    )
