"""A frozen vision encoder sees each medium of a rollout batch once, whatever passes follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ral_system.batches.features import FeatureExtractor
from ral_system.device_kind import to_device
from ral_system.models.policy import PolicyModel
from ral_system.types import Media, MicroBatch


class FrozenVision:
    """What the encoder of a rank's policy saw in the media of its rollout batch."""

    def __init__(self, policy: PolicyModel, extract: FeatureExtractor, device: torch.device, max_tokens: int) -> None:
        self._policy, self._extract, self._device, self._max_tokens = policy, extract, device, max_tokens
        self.encoded: Mapping[Media, Any] = {}
        """By medium: tensors on the device, or tuples of them (`Family.encode`)."""

    @torch.no_grad()
    def encode(self, ranks: Sequence[Sequence[MicroBatch]], rank: int) -> None:
        """Encode the media of this rank's samples, and forget those of the batch before.

        Ranks under ZeRO-3 wait for each other in every pass, so each makes as many as the one with the most media.
        """
        passes = [self._passes(shard) for shard in ranks]
        found: dict[Media, Any] = {}
        for i in range(max(map(len, passes))):
            media = passes[rank][i] if i < len(passes[rank]) else []
            features = self._extract(media) if media else {}
            features = {name: to_device(value, self._device) for name, value in features.items()}
            seen = {kind: iter(of_kind) for kind, of_kind in self._policy.encode(features).items()}
            found |= {medium: next(seen[medium.kind]) for medium in media}
        self.encoded = found

    def forget(self) -> None:
        """Free what was kept; nothing reads it before the next batch is encoded."""
        self.encoded = {}

    def _passes(self, shard: Sequence[MicroBatch]) -> list[list[Media]]:
        """The distinct media of a rank, cut where their visual tokens exceed what a forward pass may hold."""
        distinct = dict.fromkeys(medium for samples in shard for s in samples for medium in s.prompt.media)
        found: list[list[Media]] = []
        spent = self._max_tokens
        for medium in distinct:
            tokens = self._policy.family.tokens(medium)
            if spent + tokens > self._max_tokens:
                found.append([])
                spent = 0
            found[-1].append(medium)
            spent += tokens
        return found
