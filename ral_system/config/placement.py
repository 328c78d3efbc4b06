"""Checks of the placement of engines and learners, for `combinations.problems`."""

from __future__ import annotations

from collections.abc import Iterator

from ral_system.config.algorithm import AlgorithmConfig
from ral_system.config.cluster import ClusterConfig, LocalClusterConfig, RayClusterConfig
from ral_system.config.inert import without_effect
from ral_system.config.learner import DeepSpeedLearnerConfig, LearnerConfig
from ral_system.config.rollout import HfRolloutConfig, RolloutConfig, VllmRolloutConfig

_NCCL = "NCCL does not connect two processes on one GPU"
_TURNS = "set cluster.placement=colocated to share GPUs in turns"


def engines_fit_the_cluster(cluster: ClusterConfig, learner: LearnerConfig, rollout: RolloutConfig) -> Iterator[str]:
    """Check that settings of a single process fit one process."""
    if cluster.kind == "ray":
        if learner.engine == "torch" and learner.world_size > 1:
            yield "learner.engine=torch runs one rank; set learner.world_size=1 or choose learner=deepspeed"
        return
    for field, value, needed, remedy in (
        ("rollout.engine", rollout.engine, "hf", "choose rollout=hf"),
        ("rollout.workers", rollout.workers, 1, "set rollout.workers=1"),
        ("learner.engine", learner.engine, "torch", "choose learner=torch"),
        ("learner.world_size", learner.world_size, 1, "set learner.world_size=1"),
    ):
        if value != needed:
            yield f"{field}={value} needs cluster=ray; with cluster=local {remedy}"


def engines_use_all_their_gpus(cluster: RayClusterConfig, rollout: RolloutConfig) -> Iterator[str]:
    """Check that an engine has a GPU for each of its ranks and no other; one of a single rank may have a fraction.

    `engines_sit_beside_learners` does the same for colocated engines.
    """
    gpus = cluster.gpus_per_rollout
    ranks = rollout.tensor_parallel if rollout.engine == "vllm" else 1
    if cluster.placement == "colocated" or gpus in (0, ranks) or (ranks == 1 and gpus < 1):
        return
    if rollout.engine == "hf":
        yield (
            f"cluster.gpus_per_rollout={gpus:g}: rollout.engine=hf uses one GPU; set it to 1 and raise "
            "rollout.workers, or choose rollout=vllm"
        )
        return
    more = f", or raise rollout.tensor_parallel to {gpus:g}" if gpus > ranks and gpus % 1 == 0 else ""
    yield (
        f"cluster.gpus_per_rollout={gpus:g} with rollout.tensor_parallel={ranks}: an engine uses one GPU for each of "
        f"its ranks; set it to {ranks}{more}"
    )


def memory_is_shared_on_one_device(cluster: RayClusterConfig, rollout: RolloutConfig) -> Iterator[str]:
    """Check that engines can open the learner's memory."""
    if rollout.weight_transfer != "shared_memory" or cluster.placement == "colocated":
        return
    if cluster.gpus_per_rollout or cluster.gpus_per_learner:
        yield (
            f"rollout.weight_transfer=shared_memory with cluster.placement={cluster.placement}: engines and learners "
            "have GPUs of their own, which cannot open each other's memory; set weight_transfer=null"
        )


def broadcasts_connect_devices(
    cluster: RayClusterConfig, algorithm: AlgorithmConfig, rollout: RolloutConfig
) -> Iterator[str]:
    """Check that a broadcast of weights is between GPUs or between CPUs, and that engines do not share a GPU."""
    on_gpu, engine = cluster.gpus_per_learner, cluster.gpus_per_rollout
    if cluster.placement == "colocated":
        if rollout.weight_transfer == "broadcast" and on_gpu:
            yield (
                f"rollout.weight_transfer=broadcast with cluster.placement=colocated: {_NCCL}; set weight_transfer=null"
            )
        return
    if rollout.weight_transfer != "broadcast" and (rollout.weight_transfer is not None or algorithm.max_staleness):
        return
    if bool(on_gpu) != bool(engine):
        yield (
            f"cluster.gpus_per_learner={on_gpu:g} with cluster.gpus_per_rollout={engine:g}: "
            "rollout.weight_transfer=broadcast connects GPUs with GPUs or CPUs with CPUs; give both a GPU or none, or "
            "set weight_transfer=object_store"
        )
    elif 0 < engine < 1:
        yield (
            f"cluster.gpus_per_rollout={engine:g}: rollout.weight_transfer=broadcast connects learner and engines, and "
            f"{_NCCL}; set it to 1, {_TURNS}, or set weight_transfer=object_store"
        )


def learner_ranks_have_whole_gpus(cluster: RayClusterConfig, learner: LearnerConfig) -> Iterator[str]:
    """Check that no two learner ranks share a GPU."""
    if 0 < cluster.gpus_per_learner < 1 < learner.world_size and cluster.placement != "colocated":
        yield (
            f"cluster.gpus_per_learner={cluster.gpus_per_learner:g} with learner.world_size={learner.world_size}: "
            f"{_NCCL}; set it to 1, {_TURNS}, or set world_size=1"
        )


def memory_is_of_the_device(cluster: RayClusterConfig, rollout: VllmRolloutConfig) -> Iterator[str]:
    """Check that the memory limit of an engine is the one for its device."""
    gpus = cluster.gpus_per_rollout
    unread, read = ("memory_gib", "gpu_memory_utilization") if gpus else ("gpu_memory_utilization", "memory_gib")
    reason = f"cluster.gpus_per_rollout={gpus:g}"
    yield from without_effect(rollout, "rollout", reason, f"set rollout.{read} instead", unread)


def weights_travel(cluster: LocalClusterConfig, rollout: HfRolloutConfig) -> Iterator[str]:
    """Check that the time limit of a weight transfer is set only if there is another process."""
    reason = f"cluster.kind={cluster.kind}"
    yield from without_effect(rollout, "rollout", reason, "choose cluster=ray", "weight_timeout_s")


def waits_have_limits_in_order(
    cluster: RayClusterConfig, learner: DeepSpeedLearnerConfig, rollout: RolloutConfig
) -> Iterator[str]:
    """Check that a hung collective is noticed before the call that makes it ends, and no earlier than rank 0 may wait
    for engines while the others wait for it.
    """
    if learner.world_size == 1:
        yield from without_effect(
            learner, "learner", "learner.world_size=1", "set world_size=2", "collective_timeout_s"
        )
        return
    limit = f"learner.collective_timeout_s={learner.collective_timeout_s:g}"
    if learner.collective_timeout_s >= cluster.call_timeout_s:
        yield (
            f"{limit} does not end before cluster.call_timeout_s={cluster.call_timeout_s:g}, the limit of a whole "
            "call; lower it, or raise call_timeout_s"
        )
    if learner.zero_stage == 3 and learner.collective_timeout_s <= rollout.weight_timeout_s:
        yield (
            f"{limit} with learner.zero_stage=3: the ranks wait for rank 0 while it sends weights, up to "
            f"rollout.weight_timeout_s={rollout.weight_timeout_s:g}; raise it, or lower weight_timeout_s"
        )


def engines_sit_beside_learners(
    cluster: RayClusterConfig, algorithm: AlgorithmConfig, learner: LearnerConfig, rollout: RolloutConfig
) -> Iterator[str]:
    """Check that every learner rank has one engine, or one rank of an engine, to take turns with."""
    if cluster.placement != "colocated":
        return
    apart = "cluster.placement=disaggregated"
    if rollout.engine == "hf":
        yield (
            "rollout.engine=hf with cluster.placement=colocated: the transformers engine keeps its weights on the GPU "
            f"while learners train; choose rollout=vllm, or {apart}"
        )
    if algorithm.max_staleness:
        yield (
            f"algorithm.max_staleness={algorithm.max_staleness} generates while learners train, and with "
            f"cluster.placement=colocated engines sleep meanwhile; set max_staleness=0, or {apart}"
        )
    yield from _an_engine_for_all_ranks(cluster, learner, rollout)
    if cluster.scorers > learner.world_size:
        yield (
            f"cluster.scorers={cluster.scorers} with cluster.placement=colocated: there are GPUs for "
            f"learner.world_size={learner.world_size} of them; lower it"
        )
    if learner.engine == "deepspeed" and learner.offload == "optimizer_and_parameters":
        yield (
            "learner.offload=optimizer_and_parameters keeps in host memory what cluster.placement=colocated would move "
            f"there; set offload to optimizer or none, or {apart}"
        )


def _an_engine_for_all_ranks(
    cluster: RayClusterConfig, learner: LearnerConfig, rollout: RolloutConfig
) -> Iterator[str]:
    """Check that engines use all GPUs of the learner, and no others."""
    ranks = rollout.tensor_parallel if rollout.engine == "vllm" else 1
    shared = "GPU of one learner rank" if ranks == 1 else f"GPUs of rollout.tensor_parallel={ranks} learner ranks"
    if rollout.workers * ranks != learner.world_size:
        remedy = "workers and world_size to the same number"
        if ranks > 1:
            remedy = f"world_size={rollout.workers * ranks}, or tensor_parallel=1 and workers={learner.world_size}"
        yield (
            f"rollout.workers={rollout.workers} with cluster.placement=colocated and "
            f"learner.world_size={learner.world_size}: each engine shares the {shared}; set {remedy}, or "
            "cluster.placement=disaggregated"
        )
    if cluster.gpus_per_rollout != (used := ranks * cluster.gpus_per_learner):
        yield (
            f"cluster.gpus_per_rollout={cluster.gpus_per_rollout:g} with cluster.placement=colocated and "
            f"cluster.gpus_per_learner={cluster.gpus_per_learner:g}: each engine shares the {shared}; set it to "
            f"{used:g}"
        )
