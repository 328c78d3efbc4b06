"""What is refused of engines and learners that share devices: overrides, then what the message must contain."""

from typing import Any

from tests.unit.config.whole_groups import HF, LOCAL, TORCH

PLACEMENT: dict[str, tuple[dict[str, Any], list[str]]] = {
    **{
        f"{field} of one process": (
            {"cluster": LOCAL | {field: value}, "learner": TORCH, "rollout": HF},
            [
                f"cluster.{field}={value!r}: cluster.kind=local has no such setting; remove it (~cluster.{field}), or "
                "choose cluster=local as a group, without it, or cluster=ray, which has it"
            ],
        )
        for field, value in (
            *(("address", "1.2.3.4"), ("placement", "colocated"), ("scorers", 2), ("start_timeout_s", 5)),
            *(("call_timeout_s", 5), ("cpus_per_rollout", 3), ("gpus_per_rollout", 1)),
        )
    },
    "a collective that may hang as long as its call": (
        {"learner.collective_timeout_s": 600},
        [
            "learner.collective_timeout_s=600 does not end before cluster.call_timeout_s=600, the limit of a whole "
            "call; lower it, or raise call_timeout_s"
        ],
    ),
    "a collective that ends before rank 0 has sent weights": (
        {"learner.collective_timeout_s": 100, "learner.zero_stage": 3},
        [
            "learner.collective_timeout_s=100 with learner.zero_stage=3: the ranks wait for rank 0 while it sends "
            "weights, up to rollout.weight_timeout_s=120; raise it, or lower weight_timeout_s"
        ],
    ),
    "collectives of one rank": (
        {"learner.collective_timeout_s": 100, "learner.world_size": 1},
        ["learner.collective_timeout_s=100.0 has no effect with learner.world_size=1; set world_size=2, or set"],
    ),
    "learners with two GPUs that engines share": (
        {"cluster.placement": "colocated", "cluster.gpus_per_learner": 2, "cluster.gpus_per_rollout": 2},
        ["cluster.gpus_per_learner=2 with cluster.placement=colocated", "set it to 1, or to 0"],
    ),
    **{
        f"{gpus} GPUs for an engine of {ranks}": (
            {"cluster.gpus_per_rollout": gpus, "rollout.tensor_parallel": ranks},
            [
                f"cluster.gpus_per_rollout={gpus} with rollout.tensor_parallel={ranks}: an engine uses one GPU for "
                f"each of its ranks; set it to {ranks}{more}"
            ],
        )
        for gpus, ranks, more in (
            *((2, 1, ", or raise rollout.tensor_parallel to 2"), (3, 2, ", or raise rollout.tensor_parallel to 3")),
            *((1.5, 1, ""), (2.5, 2, ""), (1, 2, ""), (0.5, 2, "")),
        )
    },
    "a learner rank with a GPU to spare": (
        {"cluster.gpus_per_learner": 2},
        ["cluster.gpus_per_learner=2: such a process uses one GPU", "raise learner.world_size"],
    ),
    "a reference over a GPU and a half": (
        {"cluster.gpus_per_scorer": 1.5},
        [
            "cluster.gpus_per_scorer=1.5: a process uses a fraction of one GPU or a whole number of GPUs; "
            "set it to 1 or 2"
        ],
    ),
    "a teacher over two GPUs and a quarter": (
        {"cluster.gpus_per_teacher": 2.25},
        [
            "cluster.gpus_per_teacher=2.25: a process uses a fraction of one GPU or a whole number of GPUs; "
            "set it to 2 or 3"
        ],
    ),
    "a teacher over more GPUs than a learner rank shares": (
        {"cluster.placement": "colocated", "cluster.gpus_per_teacher": 2},
        ["cluster.gpus_per_teacher=2 with cluster.placement=colocated", "set it to 0, as cluster.gpus_per_learner"],
    ),
    "an engine on the CPU beside a learner on a GPU": (
        {"cluster.placement": "colocated", "cluster.gpus_per_learner": 1},
        [
            "cluster.gpus_per_rollout=0 with cluster.placement=colocated and cluster.gpus_per_learner=1: each engine "
            "shares the GPU of one learner rank; set it to 1"
        ],
    ),
    "a reference on a GPU that no learner has": (
        {"cluster.placement": "colocated", "cluster.gpus_per_scorer": 1},
        ["cluster.gpus_per_scorer=1 with cluster.placement=colocated", "set it to 0"],
    ),
    "engines that sleep while they generate ahead": (
        {"cluster.placement": "colocated", "algorithm.max_staleness": 1},
        ["algorithm.max_staleness=1 generates while learners train", "set max_staleness=0"],
    ),
    "an engine that sees one of its two GPUs": (
        {"cluster.placement": "colocated", "rollout.tensor_parallel": 2, "rollout.workers": 1}
        | {"cluster.gpus_per_learner": 1, "cluster.gpus_per_rollout": 1},
        [
            "cluster.gpus_per_rollout=1 with cluster.placement=colocated and cluster.gpus_per_learner=1: each engine "
            "shares the GPUs of rollout.tensor_parallel=2 learner ranks; set it to 2"
        ],
    ),
    "more engines than learners to sit beside": (
        {"cluster.placement": "colocated", "rollout.workers": 3},
        [
            "rollout.workers=3 with cluster.placement=colocated and learner.world_size=2: each engine shares the GPU "
            "of one learner rank; set workers and world_size to the same number, or cluster.placement=disaggregated"
        ],
    ),
    "engines over more GPUs than learners have": (
        {"cluster.placement": "colocated", "rollout.workers": 2, "rollout.tensor_parallel": 2},
        [
            "rollout.workers=2 with cluster.placement=colocated and learner.world_size=2: each engine shares the GPUs "
            "of rollout.tensor_parallel=2 learner ranks; set world_size=4, or tensor_parallel=1 and workers=2, or "
            "cluster.placement=disaggregated"
        ],
    ),
    "more processes of the reference than GPUs": (
        {"cluster.placement": "colocated", "cluster.scorers": 3},
        ["cluster.scorers=3 with cluster.placement=colocated", "learner.world_size=2", "lower it"],
    ),
    "parameters that are never on a shared GPU": (
        {"cluster.placement": "colocated", "learner.offload": "optimizer_and_parameters", "learner.zero_stage": 3},
        ["learner.offload=optimizer_and_parameters keeps in host memory", "set offload to optimizer or none"],
    ),
    "NCCL between two processes on one GPU": (
        {
            **{"cluster.placement": "colocated", "cluster.gpus_per_learner": 1, "cluster.gpus_per_rollout": 1},
            "rollout.weight_transfer": "broadcast",
        },
        ["rollout.weight_transfer=broadcast with cluster.placement=colocated", "set weight_transfer=null"],
    ),
    "two learner ranks on one GPU": (
        {"cluster.gpus_per_learner": 0.5, "rollout.weight_transfer": "object_store"},
        [
            "cluster.gpus_per_learner=0.5 with learner.world_size=2: NCCL does not connect two processes on one GPU; "
            "set it to 1, set cluster.placement=colocated to share GPUs in turns, or set world_size=1"
        ],
    ),
    **{
        f"an engine and a learner on one GPU, {how}": (
            {
                **{"cluster.gpus_per_learner": 0.5, "cluster.gpus_per_rollout": 0.5, "learner.world_size": 1},
                "rollout.weight_transfer": transfer,
            },
            [
                "cluster.gpus_per_rollout=0.5: rollout.weight_transfer=broadcast connects learner and engines, and "
                "NCCL does not connect two processes on one GPU; set it to 1, set cluster.placement=colocated to share "
                "GPUs in turns, or set weight_transfer=object_store"
            ],
        )
        for how, transfer in (("by default", None), ("as asked", "broadcast"))
    },
    **{
        f"a broadcast from {learner} GPU to {rollout}, {how}": (
            {
                **{"cluster.gpus_per_learner": learner, "cluster.gpus_per_rollout": rollout},
                "rollout.weight_transfer": transfer,
            },
            [
                f"cluster.gpus_per_learner={learner} with cluster.gpus_per_rollout={rollout}: "
                "rollout.weight_transfer=broadcast connects GPUs with GPUs",
                "give both a GPU or none, or set weight_transfer=object_store",
            ],
        )
        for learner, rollout in ((1, 0), (0, 2))
        for how, transfer in (("by default", None), ("as asked", "broadcast"))
    },
    "memory of another GPU": (
        {"rollout.weight_transfer": "shared_memory", "cluster.gpus_per_rollout": 1},
        ["rollout.weight_transfer=shared_memory with cluster.placement=disaggregated", "set weight_transfer=null"],
    ),
}
