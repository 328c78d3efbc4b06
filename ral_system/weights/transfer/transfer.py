"""What a way for weights to travel must do, on the learner's side and on the engine's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from ral_system.types import TensorDigest, WeightManifest

FullState = Callable[[], Mapping[str, Tensor] | None]
"""Gathers all weights under Hugging Face names on rank 0, None elsewhere. Every rank calls it."""


class Offer(Protocol):
    """One published version on its way: what an engine needs in order to receive it. Picklable."""

    @property
    def manifest(self) -> WeightManifest:
        """The identity of what was published."""
        ...


OfferT = TypeVar("OfferT")


class Received(Protocol):
    """A version that has reached an engine's process."""

    @property
    def manifest(self) -> WeightManifest:
        """The identity of what was published."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Published name and tensor, one at a time, each once."""
        ...

    def identity(self, name: str, held: Sequence[Tensor]) -> TensorDigest | None:
        """What an engine holds under a published name, for comparison with the manifest.

        `held` are all copies of the tensor in the engine's memory, in the engine's dtype. The digest of the published
        tensor if every copy equals it after rounding to the copy's dtype (-0 equals 0), otherwise the digest of one
        that differs; None without a copy.
        """
        ...


class Transfer(Protocol[OfferT]):
    """One way for weights to travel. Constructed in every learner rank and in every engine's process.

    A controller calls `offer` on every rank, then hands rank 0's offer to the engines, which `receive` it. If offers
    are not kept, every rank calls `send` while the engines receive.
    """

    keeps_offers: bool
    """An offer may be received later, while the learner trains on. If not, nothing can be generated ahead of it."""

    def offer(self, version: int, full_state: FullState) -> OfferT | None:
        """Offer the current weights as `version`: rank 0's offer, None on the others. Training may go on afterwards."""
        ...

    def send(self, offer: OfferT) -> None:
        """Send what was offered to the engines that receive it now. Not called if offers are kept."""
        ...

    def receive(self, offer: OfferT) -> Received:
        """Take an offer into this process. Raises WeightSyncError if it is not there or damaged."""
        ...
