"""Memory of each role, by purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ral_system.attention.read import AttentionRead, response_at_all_layers
from ral_system.batches.micro_batches import bundles, groups_of, micro_batches, price
from ral_system.config.attention import AttentionConfig
from ral_system.config.cluster import whole_gpus
from ral_system.config.commands import TrainConfig
from ral_system.config.learner import LearnerConfig
from ral_system.config.rollout import RolloutConfig
from ral_system.models.loading import TORCH_DTYPES
from ral_system.models.spread import shares
from ral_system.planning.devices import CONTEXT, Device
from ral_system.planning.passes import OutlinedPolicy
from ral_system.planning.workload import blinded_plan
from ral_system.scoring.reference import reference_reads
from ral_system.types import MicroBatch, Sample, TrainPlan
from ral_system.weights.digest import AT_ONCE
from ral_system.weights.transfer.buckets import BUCKET_BYTES, memory_of
from ral_system.weights.transfer.opening import configured_transfer
from ral_system.weights.transfer.streamed import Streamed

_BUCKET = 500_000_000
"""Elements of DeepSpeed's gradient bucket, which a GPU allocates whole."""
_LIVE = 1_050_000_000
"""Parameters that ZeRO 3 keeps gathered or prefetches at a time."""


@dataclass(frozen=True, slots=True)
class Role:
    """Processes of one role, which all use the same memory."""

    name: str
    processes: int
    gpus: float
    """GPUs of each process."""
    device: Mapping[str, int]
    """Bytes on its device through all phases, by purpose."""
    phases: Mapping[str, int]
    """Bytes of each phase; there is one phase at a time."""
    host: Mapping[str, int]
    """Bytes in host memory, by purpose."""
    once: Mapping[str, int] = field(default_factory=dict)
    """Bytes in host memory that all processes of a node share."""
    away: int = 0
    """Bytes of page-locked host memory for what leaves a shared device."""

    @classmethod
    def frozen(
        cls,
        name: str,
        processes: int,
        gpus: float,
        policy: OutlinedPolicy,
        samples: Sequence[Sample],
        max_tokens: int,
        reads: Sequence[AttentionRead],
    ) -> Role:
        """Plan a frozen model that scores bundles of groups.

        For a model on several GPUs, the memory is that of the fullest one, with the activations of the whole pass.
        """
        passes = (p for b in bundles(groups_of(samples), max_tokens) for p in micro_batches(groups_of(b), max_tokens))
        largest = max(passes, key=_tokens)
        over = whole_gpus(gpus) if policy.kind == "cuda" else 1
        weights = max(share.bytes for share in shares(policy.model, over))
        away = sum(page_locked(p.nbytes) for p in policy.model.parameters())
        phases = {"score": policy.score(largest, reads).peak}
        device = {"weights": weights} | context(policy.kind, gpus)
        return cls(name, processes, gpus, device, phases, {}, away=away)

    @property
    def total(self) -> int:
        """Peak memory on the device, in bytes."""
        return sum(self.device.values()) + max(self.phases.values(), default=0)


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameter counts of a model."""

    all: int
    trained: int
    bytes_each: int
    adapters: int = 0
    """Parameters of adapters, which rollout engines hold merged into other weights."""
    adapted: int = 0
    """Parameters of the matrices that adapters are merged into."""

    @classmethod
    def of(cls, model: nn.Module) -> Weights:
        """Count the parameters of a model, which may be on the meta device."""
        parameters = list(model.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        adapters, adapted = (
            sum(p.numel() for name, p in model.named_parameters() if part in name)
            for part in (".lora_", ".base_layer.weight")
        )
        return cls(sum(p.numel() for p in parameters), trained, parameters[0].element_size(), adapters, adapted)

    @property
    def bytes(self) -> int:
        """Bytes of all parameters."""
        return self.all * self.bytes_each

    @property
    def published(self) -> int:
        """Parameters that rollout engines hold."""
        return self.all - self.adapters

    @property
    def sent(self) -> int:
        """Parameters of rollout engines that training changes, and a weight update sends."""
        return self.trained - self.adapters + self.adapted


def states(learner: LearnerConfig, weights: Weights, kind: str) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes of a rank's weights, gradients and optimiser states (AdamW: two float32 moments), on its device
    and in host memory.

    This is DeepSpeed's layout. With ZeRO 1 and 2 a rank keeps a second buffer as large as the trained weights until its
    next update. With ZeRO 3 everything is partitioned, and up to 1.05e9 parameters are gathered at a time.
    """
    trained, each = weights.trained, weights.bytes_each
    stage = zero_stage(learner)
    offload = learner.offload if learner.engine == "deepspeed" else "none"
    bucket = (_BUCKET if kind == "cuda" else min(_BUCKET, trained)) * each
    if stage == 0:
        return {"weights": weights.bytes, "gradients": trained * each, "optimiser": 8 * trained}, {}
    shared = learner.world_size
    optimiser = {"gradients": 4 * trained // shared, "optimiser": 12 * trained // shared}
    if stage < 3:
        device = {"weights": weights.bytes + trained * each, "buffers": bucket}
        return (device | optimiser, {}) if offload == "none" else (device, optimiser)
    whole = {"weights": weights.bytes // shared}
    gathers = shared > 1 or offload == "optimizer_and_parameters"
    device = {"buffers": bucket + (min(_LIVE, weights.all) * each if gathers else 0)}
    if offload == "none":
        return whole | device | optimiser, {}
    return (whole | device, optimiser) if offload == "optimizer" else (device, whole | optimiser)


def streams_weights(config: TrainConfig) -> bool:
    """Return whether weights travel from device to device rather than through host memory."""
    return issubclass(configured_transfer(config.rollout, config.algorithm, config.cluster), Streamed)


def publication(policy: OutlinedPolicy, kind: str) -> int:
    """Return the bytes of the buffers for a weight update, and of the temporary tensors of its checksums."""
    tensors = ((p.shape, p.dtype) for p in policy.model.parameters())
    return memory_of(tensors, BUCKET_BYTES) + 3 * AT_ONCE[kind]


def merging(model: nn.Module) -> int:
    """Return the bytes in which the largest matrix with an adapter is merged: in float32, and then in its own dtype."""
    matrices = (p for name, p in model.named_parameters() if ".base_layer.weight" in name)
    return max((p.numel() * (4 + (p.dtype != torch.float32) * p.element_size()) for p in matrices), default=0)


MOVED = ("weights", "gradients", "optimiser", "average")
"""Device memory that a role moves to the host when it leaves a device to others."""


def context(kind: str, gpus: float) -> dict[str, int]:
    """Return the GPU memory of a process beside its tensors, if it has GPUs."""
    return {"context": CONTEXT} if kind == "cuda" and gpus else {}


def room(device: Device, role: Role) -> int:
    """Return the bytes that a process of a role may use on its device; engines limit themselves."""
    whole = device.bytes if role.name == "rollout" else device.usable
    return int(whole * min(1.0, role.gpus)) if role.gpus else whole


def on_shared_device(roles: Sequence[Role], supervised: Sequence[Role]) -> dict[str, int]:
    """Return the bytes of each phase on the fullest GPU that engines and learners share: that of learner rank 0.

    The first role is the learner, the second the engine, with one of its ranks there, the others frozen models; one is
    awake at a time but while weights are published. `supervised`: the learner of other stages, which have no frozen
    models.
    """
    learner, engine, *frozen = roles
    beside = [role for role in frozen if role.gpus]
    asleep = CONTEXT * (1 + len(beside))
    published = sum(role.device["weights"] + CONTEXT for role in (learner, engine))
    return {
        "generate": engine.total + asleep,
        "train": CONTEXT
        + max(learner.total + sum(role.total for role in beside), *(other.total for other in supervised), 0),
        "publish": published + learner.phases["publish"] + engine.phases["load"] + CONTEXT * len(beside),
    }


def moved(role: Role) -> int:
    """Return the bytes that move to the host when a role leaves its device."""
    return sum(size for part, size in role.device.items() if part in MOVED)


def page_locked(size: int) -> int:
    """Return the bytes of page-locked memory for a tensor: PyTorch rounds its size up to a power of two."""
    return 1 << (size - 1).bit_length() if size else 0


def measures_share(attention: AttentionConfig) -> bool:
    """Return whether learners measure the attention term's share of the gradient, at least now and then."""
    return attention.weight > 0 and (attention.gradient_share is not None or attention.gradient_share_every > 0)


def zero_stage(learner: LearnerConfig) -> int:
    """Return the ZeRO stage; 0 for plain torch, which has one rank."""
    return learner.zero_stage if learner.engine == "deepspeed" else 0


def learner_role(config: TrainConfig, policy: OutlinedPolicy, plan: TrainPlan, kind: str) -> Role:
    """Return the learner ranks with the memory of their states and passes."""
    weights = Weights.of(policy.model)
    cluster = config.cluster
    device, host = states(config.learner, weights, kind)
    device = device | context(kind, cluster.gpus_per_learner)
    largest = largest_micro_batch(plan)
    media = list(dict.fromkeys(medium for sample in largest for medium in sample.prompt.media))
    phases, encoded = {}, None
    if media:
        held, outlines = policy.encode(media)
        if config.freezes_vision:
            encoded, phases["encode"] = outlines, held.peak
            of_rank = {m for update in plan.updates for part in update.shards[0] for s in part for m in s.prompt.media}
            device = device | {"media": held.kept * len(of_rank) // len(media)}
    reads = [policy.read]
    if config.reward.visual.given_by("policy"):
        reads.append(response_at_all_layers(config.algorithm.attention))
    phases |= {"score": policy.score(largest, reads, encoded).peak, "update": policy.update(largest, encoded).peak}
    if (blinded := blinded_plan(config.algorithm.perception, config.learner, plan, policy.family)) is not None:
        phases["blinded view"] = policy.score(largest_micro_batch(blinded)).peak
    if config.needs_reference and not config.starts_reference:
        asked = reference_reads(config.algorithm.attention, config.reward.visual)
        phases["reference"] = policy.score(largest, [read for read in asked if read], encoded).peak
    if measures_share(config.algorithm.attention):
        phases["gradient share"] = policy.share(largest, encoded).peak
    if config.algorithm.attention.anchor == "ema":
        own = weights.trained // (config.learner.world_size if zero_stage(config.learner) == 3 else 1)
        device = device | {"average": (4 + weights.bytes_each) * own}
    records = sum(policy.blank_scores(s).nbytes for update in plan.updates for part in update.shards[0] for s in part)
    staleness = config.algorithm.max_staleness
    size = weights.published * weights.bytes_each
    versions = 1 if config.rollout.weight_transfer == "files" else 1 + staleness
    phases["publish"] = publication(policy, kind) + merging(policy.model)
    if staleness:
        shared = config.learner.world_size if zero_stage(config.learner) == 3 else 1
        host = host | {"past weights": (staleness + 1) * weights.trained * weights.bytes_each // shared}
    return Role(
        "learner",
        config.learner.world_size,
        cluster.gpus_per_learner,
        device,
        phases,
        host | {"records": records},
        {} if streams_weights(config) else {"published": size * versions},
        _away(config.learner, policy.model, device),
    )


def _away(learner: LearnerConfig, model: nn.Module, device: Mapping[str, int]) -> int:
    """Return the page-locked bytes of a rank that leaves its device. With ZeRO, each kind of training state is one
    buffer and each frozen tensor is one; without ZeRO, every tensor is.
    """
    stage = zero_stage(learner)
    ranks = learner.world_size if stage == 3 else 1
    apart = [p.nbytes // ranks for p in model.parameters() if stage == 0 or not p.requires_grad]
    if stage == 0:
        apart += [4 * p.numel() for p in model.parameters() if p.requires_grad] * 2
        return sum(map(page_locked, apart))
    buffers = [max(0, device.get("weights", 0) - sum(apart)), device.get("gradients", 0), device.get("average", 0)]
    return sum(map(page_locked, apart + buffers + [device.get("optimiser", 0) // 3] * 3))


@dataclass(frozen=True, slots=True)
class Cache:
    """The key-value cache of one rollout engine."""

    bytes: int
    token_bytes: int
    state_bytes: int = 0
    """Bytes of a sequence that do not depend on its length."""

    def sequences(self, samples: Sequence[Sample], group: int) -> int:
        """Return how many such sequences fit into the cache, if those of a group share their prompt."""
        prompt, response = len(samples[0].prompt.token_ids), len(samples[0].response_token_ids)
        of_group = self.token_bytes * (prompt + group * response) + group * self.state_bytes
        return max(0, self.bytes) * group // of_group


def rollout_role(
    rollout: RolloutConfig, gpus: float, policy: OutlinedPolicy, device: Device, sample: Sample
) -> tuple[Role, Cache]:
    """Return the rollout engines, with `gpus` each: weights, a pass over the most tokens that vLLM allows (estimated),
    and a KV cache in the rest.
    """
    text = policy.family.config.get_text_config()
    each = TORCH_DTYPES[rollout.dtype].itemsize
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    ranks = rollout.tensor_parallel if rollout.engine == "vllm" else 1
    weights = Weights.of(policy.model).published * each // ranks
    token_bytes = 2 * len(policy.family.softmax_layers) * text.num_key_value_heads * width * each // ranks
    state_bytes = policy.family.state_bytes // ranks
    passes = max(4096, rollout.max_model_len) * each * (4 * text.hidden_size + 3 * text.intermediate_size // ranks)
    passes += 3 * 4 * rollout.max_sequences * text.vocab_size
    if rollout.engine == "hf" or (not gpus and rollout.memory_gib is None):
        held = rollout.max_sequences * (token_bytes * sample.length + state_bytes)
    elif gpus:
        held = int(rollout.gpu_memory_utilization * device.bytes) - weights - passes - CONTEXT
    else:
        assert rollout.memory_gib is not None
        held = int(rollout.memory_gib * 2**30)
    phases = {"generate": passes, "load": publication(policy, device.kind)}
    host = {"media": rollout.MEDIA_CACHE_GIB * 2**30} if rollout.engine == "vllm" and device.kind == "cuda" else {}
    own = {"weights": weights, "cache": max(held, 0)} | context(device.kind, gpus)
    role = Role("rollout", rollout.workers, gpus, own, phases, host)
    return role, Cache(held, token_bytes, state_bytes)


def largest_micro_batch(plan: TrainPlan) -> MicroBatch:
    """Return the micro-batch of a step with most tokens."""
    return max((m for update in plan.updates for shard in update.shards for m in shard), key=_tokens)


def _tokens(samples: MicroBatch) -> int:
    return sum(map(price, groups_of(samples)))


def gib(size: float) -> str:
    """Format bytes in GiB, with three digits or more."""
    return f"{size / 2**30:.3g}" if size < 1000 * 2**30 else f"{size / 2**30:,.0f}"
