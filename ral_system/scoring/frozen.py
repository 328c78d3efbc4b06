"""A frozen model that scores rollouts as they finish: what the reference and teachers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch

from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator, TensorBatch
from ral_system.batches.micro_batches import groups_of, micro_batches
from ral_system.config.choices import Dtype
from ral_system.media.store import MediaStore
from ral_system.models.host_copies import HostCopies, give_back_free_memory
from ral_system.scoring.build import build_policy
from ral_system.types import Held, Holding, MicroBatch, Sample, Scores


class FrozenScorer(ABC):
    """Scores samples as they come, up to `max_tokens` in a pass, and holds the scores until they are taken.

    `read` is the attention that the model must be able to give. `gpus` share the model, where there are any.
    """

    def __init__(
        self,
        model_folder: Path,
        media: MediaStore,
        read: AttentionRead,
        *,
        dtype: Dtype,
        temperature: float,
        max_tokens: int,
        gpus: int = 1,
    ) -> None:
        devices = [torch.device("cpu")]
        if torch.cuda.is_available():
            devices = [torch.device("cuda", index) for index in range(gpus)]
        self._device, *self._others = devices
        policy = build_policy(
            model_folder, self._device, read, dtype=dtype, temperature=temperature, others=self._others
        )
        policy.banned_token_ids = policy.banned_token_ids.to(self._device)
        self._policy = policy.eval().requires_grad_(False)
        self._collate = Collator(policy.family, media)
        self._max_tokens = max_tokens
        self._scores: Scores = {}
        self._host, self._holding = HostCopies(self._device), Holding("frozen model")

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> None:
        """Score the samples, and hold their scores."""
        self._holding.require(Held.ALL, "score")
        for micro_batch in micro_batches(groups_of(samples), self._max_tokens):
            self._scores |= self._pass(self._collate(micro_batch).to(self._device), micro_batch)

    def take(self, ids: Sequence[str]) -> Scores:
        """Hand over these samples' scores and forget them."""
        return {id: self._scores.pop(id) for id in ids}

    def hold(self, held: Held) -> None:
        """Keep the model on the device, or else in host memory. A model over several GPUs never leaves them."""
        assert not self._others, "a model over several GPUs would come back whole on the first of them"
        with self._holding.changing(held):
            if held is Held.ALL:
                self._host.come_back()
            else:
                self._host.leave(dict(self._policy.named_parameters()))
            give_back_free_memory(self._device)

    @abstractmethod
    def _pass(self, batch: TensorBatch, samples: MicroBatch) -> Scores:
        """Score what passes the model together."""
