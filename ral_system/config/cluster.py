"""The `cluster` group: where the roles run."""

from __future__ import annotations

from typing import Literal

from ral_system.config.base import Group, NonNegativeFloat, Positive, PositiveFloat


class ProcessConfig(Group):
    """What a process may use of its node."""

    media_cache_gib: NonNegativeFloat
    """Disk of each node's temporary folder for decoded pictures and frames, which its processes share."""
    threads_per_process: Positive
    """OpenMP threads of each engine process on CPU."""


class ClusterConfig(ProcessConfig):
    """Where the roles run."""

    kind: Literal["ray", "local"]
    """`local` is one process without Ray, vLLM or DeepSpeed."""
    address: str | None
    """Ray address; null joins the cluster of the submitted job, or starts one on loopback."""
    scorers: Positive
    """Processes of the reference, each with `cpus_per_scorer` and `gpus_per_scorer`; they share the groups of a
    batch."""
    cpus_per_rollout: NonNegativeFloat
    cpus_per_learner: NonNegativeFloat
    cpus_per_scorer: NonNegativeFloat
    cpus_per_teacher: NonNegativeFloat
    cpus_per_reward: NonNegativeFloat
    gpus_per_rollout: NonNegativeFloat
    gpus_per_learner: NonNegativeFloat
    gpus_per_scorer: NonNegativeFloat
    gpus_per_teacher: NonNegativeFloat
    start_timeout_s: PositiveFloat
    """Bound on waiting for nodes and resources; on each node finding the models; and on starting every actor."""
    call_timeout_s: PositiveFloat
    """Bound on any one call to an actor."""
