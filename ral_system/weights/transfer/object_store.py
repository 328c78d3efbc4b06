"""Weights as host arrays in the offer itself: Ray's object store carries them, or the process that holds both sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ral_system.types import TensorDigest, WeightManifest, Weights
from ral_system.weights.manifest import build_weights, digest_array, from_host, to_host
from ral_system.weights.transfer.transfer import FullState


class ObjectStore:
    """Offers `Weights`, the arrays of all tensors. One copy per node, shared by its engines."""

    keeps_offers = True

    def __init__(self, folder: Path | None = None, waiting: int = 1) -> None:
        pass

    def offer(self, version: int, full_state: FullState) -> Weights | None:
        """Copy the weights to host memory, on rank 0."""
        state = full_state()
        return None if state is None else build_weights(version, state)

    def send(self, offer: Weights) -> None:
        """Do nothing: the offer holds the weights."""

    def receive(self, offer: Weights) -> ReceivedArrays:
        """Wrap the arrays, which have arrived with the offer."""
        return ReceivedArrays(offer)


class ReceivedArrays:
    """Arrays of an object store, which are read-only and may go away: tensors are copies."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    @property
    def manifest(self) -> WeightManifest:
        """The identity of what was published."""
        return self._weights.manifest

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors in published order."""
        for name in self._weights.arrays:
            yield name, self._tensor(name)

    def identity(self, name: str, held: Sequence[Tensor]) -> TensorDigest | None:
        """Digest of the published bytes, or of a copy that differs from them."""
        dtype = self.manifest.tensors[name].dtype
        if (other := differing(held, self._tensor(name))) is not None:
            return other
        return digest_array(self._weights.arrays[name], dtype) if held else None

    def _tensor(self, name: str) -> Tensor:
        return from_host(self._weights.arrays[name], self.manifest.tensors[name].dtype)


def differing(held: Sequence[Tensor], received: Tensor) -> TensorDigest | None:
    """Digest of the first copy that is not what was received, rounded to the copy's dtype; None if there is none."""
    for copy in held:
        if copy.shape != received.shape or not torch.equal(copy.detach().cpu(), received.to(copy.dtype)):
            return digest_array(*to_host(copy.to(received.dtype)))
    return None
