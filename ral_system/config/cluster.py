"""The `cluster` group: where the roles run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ral_system.config.base import Group, NonNegativeFloat, Positive, PositiveFloat


class ProcessConfig(Group):
    """What a process may use of its node."""

    media_cache_gib: NonNegativeFloat
    """Disk of each node's temporary folder for decoded pictures and frames, which its processes share."""
    threads_per_process: Positive
    """OpenMP threads of each engine process on CPU. Two runs are the same to the last bit with 1 only."""


class ClusterConfig(ProcessConfig):
    """Where the roles run."""

    kind: Literal["ray", "local"]
    """`local` is one process without Ray, vLLM or DeepSpeed."""
    address: str | None
    """Ray address; null joins the cluster of the submitted job, or starts one on loopback."""
    placement: Literal["disaggregated", "colocated"]
    """`disaggregated`: each process has its own share of the cluster. `colocated`: rollout engine i shares the GPU of
    learner rank i, as do the reference and teachers; engines sleep while learners train, and learners are in host
    memory while engines generate. `gpus_per_*` then count GPUs that a process shares with others."""
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

    def problems(self) -> Iterator[str]:
        """Refuse GPUs that a process would not use, to share what is one process, and GPUs that several or none use."""
        if self.placement != "colocated":
            yield from self._unused_gpus()
            return
        if self.kind == "local":
            yield (
                "cluster.placement=colocated has no effect with cluster.kind=local, where one process holds all roles; "
                "set it to disaggregated, or choose cluster=ray"
            )
        if self.gpus_per_learner not in (0, 1):
            yield (
                f"cluster.gpus_per_learner={self.gpus_per_learner:g} with cluster.placement=colocated: a learner rank "
                "has one GPU, which others share; set it to 1, or to 0 without GPUs"
            )
        own = self.gpus_per_learner
        for field, legal in (("rollout", {own}), ("scorer", {0, own}), ("teacher", {0, own})):
            if (gpus := getattr(self, f"gpus_per_{field}")) not in legal:
                yield (
                    f"cluster.gpus_per_{field}={gpus:g} with cluster.placement=colocated: the process uses the GPU of "
                    f"a learner rank; set it to {own:g}, as cluster.gpus_per_learner"
                )

    def _unused_gpus(self) -> Iterator[str]:
        remedies = {
            "learner": "set it to 1 and raise learner.world_size",
            "scorer": "set it to 1; for speed raise cluster.scorers; for a model that does not fit one GPU set "
            "learner.lora, which needs no reference",
            "teacher": "set it to 1, and choose a teacher that fits one GPU",
        }
        for role, remedy in remedies.items():
            if (gpus := getattr(self, f"gpus_per_{role}")) > 1:
                yield f"cluster.gpus_per_{role}={gpus:g}: such a process uses one GPU; {remedy}"
