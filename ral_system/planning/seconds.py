"""Seconds of every phase of an rl step: operations, bytes and links, each at the device's rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ral_system.attention.packing import Packing
from ral_system.config.commands import TrainConfig
from ral_system.data.micro_batches import groups_of
from ral_system.models.flops import FlopCounter
from ral_system.models.loading import TORCH_DTYPES
from ral_system.planning.devices import Device
from ral_system.planning.memory import Cache, Weights
from ral_system.planning.passes import OutlinedPolicy, pass_flops, text_flops
from ral_system.types import Sample, TrainPlan

PUBLISH_S_PER_BYTE = 4.6e-9
"""Copying, hashing and comparing weights on hosts, learner and engine together, as measured on one thread."""
WRITE_BYTES_PER_S = 1e9
"""Speed of the run folder's disk: an assumption."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a step."""

    name: str
    flops: int
    """Operations of all its processes."""
    seconds: float
    bound: str
    """What it waits for most."""


class Clock:
    """Reckons with one model, the learner's, on one kind of device."""

    def __init__(self, config: TrainConfig, policy: OutlinedPolicy, device: Device) -> None:
        self._config, self._device = config, device
        self._family = policy.family
        self._flops = FlopCounter(policy.model, policy.family)
        self._weights = Weights.of(policy.model)

    def rollout(self, samples: Sequence[Sample], cache: Cache) -> Phase:
        """Prompts are read once; then every engine decodes its share, as many sequences at once as it holds."""
        rollout, groups, device = self._config.rollout, groups_of(samples), self._device
        ranks = rollout.tensor_parallel if rollout.engine == "vllm" else 1
        mine = -(-len(groups) // rollout.workers)
        prompt, response = len(samples[0].prompt.token_ids), len(samples[0].response_token_ids)
        read = self._vision(samples) + sum(self._flops.text(Packing.apart((prompt,))) for _ in groups)
        reading_s = read * mine / len(groups) / ranks / device.flops_per_s
        group = len(groups[0])
        at_once = max(1, min(rollout.max_sequences, mine * group, cache.sequences(samples, group)))
        rounds = math.ceil(mine * group / at_once)
        moved = self._weights.all * TORCH_DTYPES[rollout.dtype].itemsize / ranks + at_once * cache.token_bytes * (
            prompt + response / 2
        )
        tokens = self._flops.text(Packing.apart((1,))) + self._flops.head(1)
        moving_s, computing_s = moved / device.bytes_per_s, at_once * tokens / ranks / device.flops_per_s
        step_s = max(moving_s, computing_s) + device.decode_s
        decoding_s = rounds * response * step_s
        bound = "prompts" if reading_s > decoding_s else "memory" if moving_s > computing_s else "arithmetic"
        return Phase("rollout", read + len(samples) * response * tokens, reading_s + decoding_s, bound)

    def frozen(self, name: str, policy: OutlinedPolicy, samples: Sequence[Sample], processes: int) -> Phase:
        """A frozen model that scores all groups, shared by its processes."""
        counter = FlopCounter(policy.model, policy.family)
        total = sum(pass_flops(counter, policy.family, group) for group in groups_of(samples))
        share = math.ceil(len(groups_of(samples)) / processes) / len(groups_of(samples))
        return Phase(name, total, total * share / self._device.flops_per_s, "arithmetic")

    def score(self, plan: TrainPlan) -> Phase:
        """Old log-probs and attention; all ranks wait for the busiest."""
        return self._pass("old log-probs", plan, times=1, encodes=1, passes=1)

    def update(self, plan: TrainPlan) -> Phase:
        """All updates: forward, backward, and with checkpoints forward once more."""
        learner, frozen = self._config.learner, self._config.model.freeze_vision
        times = 4 if learner.gradient_checkpointing else 3
        return self._pass("updates", plan, times=times, encodes=0 if frozen else times, passes=3)

    def publish(self) -> Phase:
        """Weights on their way to the engines, through host memory."""
        size = self._weights.bytes
        moving_s = 2 * size / self._device.host_bytes_per_s if self._device.kind == "cuda" else 0.0
        return Phase("publish", 0, size * PUBLISH_S_PER_BYTE + moving_s, "host")

    def checkpoint_bytes(self) -> int:
        """Bytes on disk: weights, their float32 copies and two moments."""
        return self._weights.bytes + 12 * self._weights.trained

    def _pass(self, name: str, plan: TrainPlan, *, times: int, encodes: int, passes: int) -> Phase:
        ranks = [[update.shards[rank] for update in plan.updates] for rank in range(len(plan.updates[0].shards))]
        each = [
            sum(
                times * sum(text_flops(self._flops, part) for part in shard if part)
                + encodes * self._vision([s for part in shard for s in part])
                for shard in shards
            )
            for shards in ranks
        ]
        computing_s = max(each) / self._device.flops_per_s
        moving_s = passes * sum(len(update.shards[0]) for update in plan.updates) * self._gather_s()
        return Phase(name, sum(each), computing_s + moving_s, "arithmetic" if computing_s > moving_s else "links")

    def _gather_s(self) -> float:
        """Seconds of passing all weights to every rank once, as ZeRO 3 does in every pass."""
        learner = self._config.learner
        if learner.engine != "deepspeed" or learner.zero_stage < 3:
            return 0.0
        return self._weights.bytes * (1 - 1 / learner.world_size) / self._device.link_bytes_per_s

    def _vision(self, samples: Iterable[Sample]) -> int:
        media = dict.fromkeys(medium for sample in samples for medium in sample.prompt.media)
        return self._flops.vision(self._family.layout(medium) for medium in media)
