"""Counts what a learner does in its updates."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ral_system.batches.collate import TensorBatch
from ral_system.models.flops import FlopCounter, update_passes
from ral_system.models.policy import PolicyModel
from ral_system.observability.memory import peak_gib
from ral_system.observability.work import Work
from ral_system.types import MicroBatch


class Meter:
    """Counts the updates of one rank."""

    def __init__(self, policy: PolicyModel, device: torch.device) -> None:
        self._flops = FlopCounter(policy.model, policy.family)
        self._family, self._device = policy.family, device
        self._vision_passes = update_passes(policy.family.vision_encoder(policy.model))
        self._text_passes = update_passes(policy.model.get_decoder())
        self._work = Work()

    @contextmanager
    def update(self) -> Iterator[None]:
        """Time the update inside the block."""
        began = time.perf_counter()
        yield
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        self._work += Work(time.perf_counter() - began, peak_gib=peak_gib(), device=name)

    def count(self, batch: TensorBatch, samples: MicroBatch) -> None:
        """Count one micro-batch that is trained on."""
        each = [self._family.layout(medium) for sample in samples for medium in sample.prompt.media]
        media = dict.fromkeys(medium for sample in samples for medium in sample.prompt.media)
        encoded = [self._family.layout(medium) for medium in media] if batch.encoded is None else []
        head = self._flops.head(sum(len(sample.response_token_ids) for sample in samples))
        text, apart = (self._flops.text(batch.packing, shared=shared) for shared in (True, False))
        self._work += Work(
            tokens=batch.packing.tokens,
            unshared_tokens=batch.packing.unshared_tokens,
            media=len(encoded),
            flops=self._text_passes * (text + head) + self._vision_passes * self._flops.vision(encoded),
            unshared_flops=self._text_passes * (apart + head) + self._vision_passes * self._flops.vision(each),
            peak_gib=self._work.peak_gib,
            device=self._work.device,
        )

    def take(self) -> Work:
        """Hand over what was counted since the last call."""
        work, self._work = self._work, Work()
        return work
