"""Duration of each phase of an rl step, from its operations and bytes at the rates of the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ral_system.attention.packing import Packing
from ral_system.batches.micro_batches import bundles, groups_of
from ral_system.config.cluster import whole_gpus
from ral_system.config.commands import TrainConfig
from ral_system.models.flops import FlopCounter
from ral_system.models.loading import TORCH_DTYPES
from ral_system.planning.devices import Device
from ral_system.planning.memory import Cache, Role, Weights, measures_share, moved, streams_weights, zero_stage
from ral_system.planning.passes import OutlinedPolicy, pass_flops, text_flops, tokens_of
from ral_system.rollout.dealing import deal
from ral_system.types import Piece, Sample, Sampling, TrainPlan

PUBLISH_S_PER_BYTE = 4.6e-9
"""Time to copy and compare weights on hosts, for learner and engine together, measured on one thread."""
DIGEST_BYTES = 10
"""Memory traffic of a GPU's checksum per byte of weights: for each of the two sums one read of the weights, and a write
and a read of 64-bit products."""
_COPIES = 4
"""Reads and writes of each byte of weights on its way through a buffer, for learner and engine together."""
HOST_BYTES_PER_S = 2e10
"""Bandwidth of host memory for one rank: an assumption."""
PREPROCESS_S_PER_PIXEL = 3e-8
"""Preprocessing on one CPU thread, which took 0.3 to 0.5 s for a video of 128 frames."""
_ADAMW_BYTES = 28
"""Memory traffic of AdamW per parameter: gradient, weight and two moments in float32."""
WRITE_BYTES_PER_S = 1e9
"""Write speed of the run folder's disk: an assumption."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a step."""

    name: str
    flops: int
    """Floating-point operations of all its processes."""
    seconds: float
    bound: str
    """Resource that takes most of its time: compute, memory, links, media, host or prefill."""


def dealt_to_engines(samples: Sequence[Sample], engines: int) -> list[list[Piece]]:
    """Return the share of each engine in a step."""
    groups = groups_of(samples)
    sampling = Sampling(len(groups[0]), 1.0, len(samples[0].response_token_ids), seed=0)
    return deal([group[0].prompt for group in groups], sampling, engines)


def preprocess_s(samples: Iterable[Sample]) -> float:
    """Return the seconds of one process that preprocesses the distinct media of samples."""
    media = {medium for sample in samples for medium in sample.prompt.media}
    return PREPROCESS_S_PER_PIXEL * sum(medium.width_px * medium.height_px * medium.frames for medium in media)


class Clock:
    """Estimates the duration of phases, for the learner's model on one kind of device."""

    def __init__(self, config: TrainConfig, policy: OutlinedPolicy, device: Device) -> None:
        self._config, self._device = config, device
        self._family = policy.family
        self._flops = FlopCounter(policy.model, policy.family)
        self._weights, self._update_passes = Weights.of(policy.model), policy.passes_of_an_update()
        self._offload = config.learner.offload if config.learner.engine == "deepspeed" else "none"

    def rollout(self, samples: Sequence[Sample], cache: Cache) -> Phase:
        """Time the rollout: each engine prefills the prompts of its share, then decodes as many sequences as fit."""
        rollout, groups, device = self._config.rollout, groups_of(samples), self._device
        ranks = rollout.tensor_parallel if rollout.engine == "vllm" else 1
        busiest = max(dealt_to_engines(samples, rollout.workers), key=lambda share: sum(p.completions for p in share))
        mine = sum(piece.completions for piece in busiest)
        prompt, response = len(samples[0].prompt.token_ids), len(samples[0].response_token_ids)
        reads = len(groups) if rollout.engine == "vllm" else len(samples)  # hf reads a prompt for every response
        read = self._vision(samples) + reads * self._flops.text(Packing.apart((prompt,)))
        preprocessing_s = preprocess_s(samples) * len(busiest) / len(groups)
        reading_s = preprocessing_s + read * len(busiest) / len(groups) / ranks / device.flops_per_s
        group = len(groups[0])
        at_once = max(1, min(rollout.max_sequences, mine, cache.sequences(samples, group)))
        rounds = math.ceil(mine / at_once)
        moved = self._weights.published * TORCH_DTYPES[rollout.dtype].itemsize / ranks
        moved += at_once * (cache.token_bytes * (prompt + response / 2) + 2 * cache.state_bytes)
        half = prompt + response // 2  # tokens that one attends to, on average
        tokens = self._flops.text(Packing.apart((half,))) - self._flops.text(Packing.apart((half - 1,)))
        tokens += self._flops.head(1)
        moving_s, computing_s = moved / device.bytes_per_s, at_once * tokens / ranks / device.flops_per_s
        step_s = max(moving_s, computing_s) + device.decode_s
        decoding_s = rounds * response * step_s
        bound = "prefill" if reading_s > decoding_s else "memory" if moving_s > computing_s else "compute"
        return Phase("rollout", read + len(samples) * response * tokens, reading_s + decoding_s, bound)

    def frozen(
        self,
        name: str,
        policy: OutlinedPolicy,
        samples: Sequence[Sample],
        max_tokens: int,
        processes: int,
        gpus: float = 1,
    ) -> Phase:
        """Time a frozen model that scores all groups, in bundles that its processes share.

        The GPUs of a process work one after another: more of them compute no faster, and every hidden state travels to
        each next one and back.
        """
        counter = FlopCounter(policy.model, policy.family)
        crossings = whole_gpus(gpus) if gpus > 1 else 0
        width = policy.family.config.get_text_config().hidden_size
        token_s = crossings * width * Weights.of(policy.model).bytes_each / self._device.link_bytes_per_s
        flops, loads = 0, [0.0] * processes
        for bundle in bundles(groups_of(samples), max_tokens):
            of_bundle = pass_flops(counter, policy.family, bundle)
            seconds = of_bundle / self._device.flops_per_s + token_s * tokens_of(bundle) + preprocess_s(bundle)
            loads[loads.index(min(loads))] += seconds
            flops += of_bundle
        return Phase(name, flops, max(loads), "compute")

    def score(self, plan: TrainPlan) -> Phase:
        """Time the old log-probs and attention; all ranks wait for the busiest."""
        averaged = self._config.algorithm.attention.anchor == "ema"  # whose attention takes another pass
        times = 2 if averaged else 1
        return self._pass("old log-probs", plan, text_passes=times, weight_gathers=times)

    def blinded(self, passes: TrainPlan) -> Phase:
        """Time the log-probs with the blinded view, whose media no rank has encoded yet."""
        return self._pass("blinded view", passes)

    def reference(self, plan: TrainPlan) -> Phase:
        """Time the reference's log-probs, if the learner without its adapters is the reference."""
        reads = 0.0 if self._config.freezes_vision else 1.0
        return self._pass("reference", plan, encoder_passes=reads, media_reads=reads)

    def update(self, plan: TrainPlan) -> Phase:
        """Time all updates: forward, backward, and with gradient checkpointing a second forward."""
        algorithm, measured = self._config.algorithm, 0.0
        if measures_share(self._config.algorithm.attention):
            every = algorithm.attention.gradient_share_every
            measured = 1.0 if algorithm.attention.gradient_share is not None else 1.0 / every
        text, vision = self._update_passes
        found = self._pass(
            "updates",
            plan,
            text_passes=text + measured,
            encoder_passes=vision + measured if vision else 0.0,
            weight_gathers=3 + measured,
            media_reads=1 + measured if vision else 0.0,
        )
        again = algorithm.passes_per_step
        step_s = again * len(plan.updates) * (self._sum_s() + self._offloaded_step_s())
        return replace(found, flops=again * found.flops, seconds=again * found.seconds + step_s)

    def fit(self, plan: TrainPlan) -> Phase:
        """Time one update with demonstrations, whose media are encoded each time, also by a frozen encoder."""
        text, vision = self._update_passes
        found = self._pass("update", plan, text_passes=text, encoder_passes=vision or 1, weight_gathers=3)
        return replace(found, seconds=found.seconds + self._sum_s() + self._offloaded_step_s())

    def validate(self, plan: TrainPlan) -> Phase:
        """Time the supervised objective without an update."""
        return self._pass("validate", plan)

    def publish(self) -> Phase:
        """Time a weight update: the transfer of trained tensors, and their checksums on both sides."""
        weights, device = self._weights, self._device
        size = weights.sent * weights.bytes_each
        if streams_weights(self._config):
            local_s = (2 * DIGEST_BYTES + _COPIES) * size / device.bytes_per_s
            gathered_s = self._gather_s() * weights.sent / weights.all
            return Phase("publish", 0, local_s + gathered_s + size / device.link_bytes_per_s, "memory")
        moving_s = 2 * size / device.host_bytes_per_s if device.kind == "cuda" else 0.0
        return Phase("publish", 0, size * PUBLISH_S_PER_BYTE + moving_s, "host")

    def move(self, roles: Sequence[Role]) -> Phase:
        """Time the move of learner and frozen models to the host and back, if they share a device with engines."""
        size = sum(moved(role) for role in roles if role.gpus)
        return Phase("move", 0, 2 * size / self._device.host_bytes_per_s, "host")

    def checkpoint_bytes(self) -> int:
        """Return the size of a checkpoint: trained weights, two moments, with ZeRO float32 copies, and any average."""
        copies = 12 if zero_stage(self._config.learner) else 8
        average = 4 if self._config.algorithm.attention.anchor == "ema" else 0
        return (self._weights.bytes_each + copies + average) * self._weights.trained

    def model_bytes(self) -> int:
        """Return the size of an exported model on disk."""
        return self._weights.published * self._weights.bytes_each

    def _pass(
        self,
        name: str,
        plan: TrainPlan,
        *,
        text_passes: float = 1,
        encoder_passes: float = 1,
        weight_gathers: float = 1,
        media_reads: float = 1,
    ) -> Phase:
        """Time passes over every micro-batch of a plan, on the busiest rank.

        `text_passes` and `encoder_passes` count forward passes, `weight_gathers` passes in which ranks gather weights
        and exchange tokens. `media_reads`: how often a rank preprocesses its media.
        """
        ranks = [[update.shards[shard] for update in plan.updates] for shard in range(len(plan.updates[0].shards))]
        each = [
            sum(
                text_passes * sum(text_flops(self._flops, part) for part in shard if part)
                + encoder_passes * self._vision([s for part in shard for s in part])
                for shard in shards
            )
            for shards in ranks
        ]
        together = self._config.learner.world_size // len(ranks)
        moving_s = weight_gathers * sum(len(update.shards[0]) for update in plan.updates) * self._gather_s()
        tokens = max(sum(tokens_of(part) for shard in shards for part in shard if part) for shards in ranks)
        moving_s += weight_gathers * self._exchange_s(tokens, together)
        media_s = max(sum(preprocess_s(s for part in shard for s in part) for shard in shards) for shards in ranks)
        waits = {
            "compute": max(each) / together / self._device.flops_per_s,
            "links": moving_s,
            "media": media_reads * media_s,
        }
        return Phase(name, round(sum(each)), sum(waits.values()), max(waits, key=waits.__getitem__))

    def _exchange_s(self, tokens: int, together: int) -> float:
        """Return the seconds of the all-to-all exchanges between ranks that hold `tokens` together.

        In each layer queries, keys and values go to the ranks of their heads, and attention outputs come back.
        """
        text = self._family.config.get_text_config()
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        keys = math.lcm(text.num_key_value_heads, together)
        elements = 2 * (text.num_attention_heads + keys) * width * text.num_hidden_layers * tokens / together
        return elements * self._weights.bytes_each * (1 - 1 / together) / self._device.link_bytes_per_s

    def _gather_s(self) -> float:
        """Return the seconds of an all-gather of all weights, which ZeRO 3 does in each pass."""
        learner = self._config.learner
        if zero_stage(learner) < 3:
            return 0.0
        gathered_s = self._weights.bytes * (1 - 1 / learner.world_size) / self._device.link_bytes_per_s
        if self._offload != "optimizer_and_parameters":
            return gathered_s
        return gathered_s + self._weights.bytes / learner.world_size / self._device.host_bytes_per_s

    def _sum_s(self) -> float:
        """Return the seconds of an all-reduce of gradients; with ZeRO 1 and 2, of a reduce-scatter and an all-gather of
        new weights.
        """
        learner = self._config.learner
        if zero_stage(learner) == 3:  # gradients are reduced in its passes
            return 0.0
        sent = self._weights.trained * self._weights.bytes_each * (1 - 1 / learner.world_size)
        return 2 * sent / self._device.link_bytes_per_s

    def _offloaded_step_s(self) -> float:
        """Return the seconds of an optimiser step in host memory: gradients in, AdamW on the CPU, weights back."""
        if self._offload == "none":
            return 0.0
        own = self._weights.trained / self._config.learner.world_size
        moved = own * (4 + self._weights.bytes_each)
        return moved / self._device.host_bytes_per_s + own * _ADAMW_BYTES / HOST_BYTES_PER_S

    def _vision(self, samples: Iterable[Sample]) -> int:
        media = dict.fromkeys(medium for sample in samples for medium in sample.prompt.media)
        return self._flops.vision(self._family.layout(medium) for medium in media)
