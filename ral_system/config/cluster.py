"""The `cluster` group: processes, their placement, and their resources."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ral_system.config.base import Group, NonNegativeFloat, Positive, PositiveFloat


class ProcessConfig(Group):
    """Resources of a node that a process may use."""

    media_cache_gib: NonNegativeFloat
    """Disk space, in GiB, for decoded pictures and frames in each node's temporary folder. All processes of a node
    share it."""
    threads_per_process: Positive
    """OpenMP threads of each engine process on CPU. Only with 1 are two runs bit-identical."""


class LocalClusterConfig(ProcessConfig):
    """One process without Ray, vLLM or DeepSpeed."""

    kind: Literal["local"]

    # What one process cannot choose, for code that reads it of either class.
    placement: ClassVar[Literal["disaggregated"]] = "disaggregated"
    scorers: ClassVar[int] = 1
    gpus_per_rollout: ClassVar[float] = 0.0
    gpus_per_learner: ClassVar[float] = 0.0
    gpus_per_scorer: ClassVar[float] = 0.0
    gpus_per_teacher: ClassVar[float] = 0.0
    start_timeout_s: ClassVar[float] = 300.0


class RayClusterConfig(ProcessConfig):
    """A process for each role, on the nodes of a Ray cluster."""

    kind: Literal["ray"]
    address: str | None
    """Address of a Ray cluster. null joins the cluster of a submitted job, or else starts one on this machine."""
    placement: Literal["disaggregated", "colocated"]
    """disaggregated: each process has resources of its own. colocated: every rollout engine shares the GPUs of
    `rollout.tensor_parallel` learner ranks, the reference and the teachers that of one. Engines sleep while learners
    train, and learners move to host memory while engines generate; `gpus_per_*` then count GPUs that a process shares
    with others."""
    scorers: Positive
    """Number of processes of the reference model, among which the groups of a batch are divided."""
    cpus_per_rollout: NonNegativeFloat
    """CPU cores that Ray reserves for each rollout engine."""
    cpus_per_learner: NonNegativeFloat
    """CPU cores that Ray reserves for each learner rank."""
    cpus_per_scorer: NonNegativeFloat
    """CPU cores that Ray reserves for each process of the reference model."""
    cpus_per_teacher: NonNegativeFloat
    """CPU cores that Ray reserves for each teacher."""
    cpus_per_reward: NonNegativeFloat
    """CPU cores that Ray reserves for the reward actor."""
    gpus_per_rollout: NonNegativeFloat
    """GPUs of each rollout engine: `rollout.tensor_parallel`, or a fraction of one GPU; 0 runs it on CPU."""
    gpus_per_learner: NonNegativeFloat
    """GPUs of each learner rank; 0 runs it on CPU."""
    gpus_per_scorer: NonNegativeFloat
    """GPUs of each process of the reference model; 0 runs it on CPU. Two or more share its layers: raise it for a model
    that does not fit one."""
    gpus_per_teacher: NonNegativeFloat
    """GPUs of each teacher; 0 runs it on CPU. Two or more share its layers: raise it for a model that does not fit
    one."""
    start_timeout_s: PositiveFloat
    """Time limit, in seconds, for each part of the start: waiting for nodes and resources, checking that every node
    finds the models, and starting the actors."""
    call_timeout_s: PositiveFloat
    """Time limit, in seconds, for a call to an actor, such as an update or the scores of a batch.
    `learner.collective_timeout_s` and `rollout.weight_timeout_s` limit waits inside such calls."""

    def problems(self) -> Iterator[str]:
        """Refuse GPUs that a process would not use, and shared ones that are not those of a learner rank."""
        if self.placement != "colocated":
            yield from self._unused_gpus()
            return
        if self.gpus_per_learner not in (0, 1):
            yield (
                f"cluster.gpus_per_learner={self.gpus_per_learner:g} with cluster.placement=colocated: a learner rank "
                "has one GPU, which others share; set it to 1, or to 0 without GPUs"
            )
        own = self.gpus_per_learner
        for field in ("scorer", "teacher"):
            if (gpus := getattr(self, f"gpus_per_{field}")) not in (0, own):
                yield (
                    f"cluster.gpus_per_{field}={gpus:g} with cluster.placement=colocated: the process uses the GPU of "
                    f"a learner rank; set it to {own:g}, as cluster.gpus_per_learner, or set "
                    "cluster.placement=disaggregated"
                )

    def _unused_gpus(self) -> Iterator[str]:
        if self.gpus_per_learner > 1:
            yield (
                f"cluster.gpus_per_learner={self.gpus_per_learner:g}: such a process uses one GPU; set it to 1 and "
                "raise learner.world_size"
            )
        for role in ("scorer", "teacher"):
            gpus = getattr(self, f"gpus_per_{role}")
            if gpus > 1 and gpus % 1:
                yield (
                    f"cluster.gpus_per_{role}={gpus:g}: a process uses a fraction of one GPU or a whole "
                    f"number of GPUs; set it to {math.floor(gpus)} or {math.ceil(gpus)}"
                )


def whole_gpus(gpus: float) -> int:
    """Return the number of GPUs that a frozen model is on, given those of its process; a fraction counts as one."""
    return max(1, int(gpus))


ClusterConfig = Annotated[LocalClusterConfig | RayClusterConfig, Field(discriminator="kind")]
