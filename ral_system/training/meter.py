"""Counts what a learner does in its updates, and what its vision encoder does in all passes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ral_system.batches.collate import TensorBatch
from ral_system.models.flops import FlopCounter, update_passes
from ral_system.models.policy import PolicyModel
from ral_system.observability.memory import peak_gib
from ral_system.observability.work import Work
from ral_system.types import MicroBatch, UpdatePlan


class Meter:
    """Counts the updates of one rank."""

    def __init__(self, policy: PolicyModel, device: torch.device) -> None:
        self._flops = FlopCounter(policy.model, policy.family)
        self._policy, self._family, self._device = policy, policy.family, device
        self._vision_passes = update_passes(policy.family.vision_encoder(policy.model))
        self._text_passes = update_passes(policy.model.get_decoder())
        self._work = Work()
        self._taken = self._encoder()

    @contextmanager
    def update(self) -> Iterator[None]:
        """Time the update inside the block."""
        began = time.perf_counter()
        yield
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        self._work += Work(time.perf_counter() - began, peak_gib=peak_gib(), device=name)

    def count(self, batch: TensorBatch, samples: MicroBatch) -> None:
        """Count one micro-batch that is trained on; `samples` are empty if `batch` passes in place of an empty one."""
        if not samples:
            self._add(filler_tokens=batch.packing.tokens)
            return
        each = [self._family.layout(medium) for sample in samples for medium in sample.prompt.media]
        media = dict.fromkeys(medium for sample in samples for medium in sample.prompt.media)
        encoded = [self._family.layout(medium) for medium in media] if batch.encoded is None else []
        head = self._flops.head(sum(len(sample.response_token_ids) for sample in samples))
        text, apart = (self._flops.text(batch.packing, shared=shared) for shared in (True, False))
        self._add(
            tokens=batch.packing.tokens,
            unshared_tokens=batch.packing.unshared_tokens,
            flops=self._text_passes * (text + head) + self._vision_passes * self._flops.vision(encoded),
            unshared_flops=self._text_passes * (apart + head) + self._vision_passes * self._flops.vision(each),
        )

    def count_distinct(self, update: UpdatePlan) -> None:
        """Count what all ranks would pass in an update if no prompt passed twice; one rank's meter does."""
        samples = [s for shard in update.shards for micro in shard for s in micro]
        prompts = {s.prompt for s in samples}
        responses = sum(len(s.response_token_ids) for s in samples)
        self._add(distinct_tokens=responses + sum(len(prompt.token_ids) for prompt in prompts))

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Leave out what the vision encoder does inside the block."""
        before = self._encoder()
        yield
        self._taken = tuple(t + now - b for t, now, b in zip(self._taken, self._encoder(), before, strict=True))

    def take(self) -> Work:
        """Hand over what was counted since the last call."""
        passes, media = (now - taken for now, taken in zip(self._encoder(), self._taken, strict=True))
        self._taken = self._encoder()
        work, self._work = replace(self._work, encoder_passes=passes, media=media), Work()
        return work

    def _encoder(self) -> tuple[int, ...]:
        """Return how often the encoder has run so far, and over how many media.

        The first of the ranks that share micro-batches counts for all of them.
        """
        if self._policy.sequence is not None and self._policy.sequence.rank > 0:
            return 0, 0
        return self._policy.encoder_passes, self._policy.media_encoded

    def _add(self, **counts: int) -> None:
        self._work += Work(**counts, device=self._work.device)
