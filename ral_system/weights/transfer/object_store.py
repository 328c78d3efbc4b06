"""Weights as host arrays in the offer itself: Ray's object store carries them, or the process that holds both sides.

numpy has no bfloat16: such a tensor travels as the uint16 array of its bit patterns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ral_system.types import WeightManifest
from ral_system.weights.transfer.transfer import Piece, Setting, WeightStream


@dataclass(frozen=True, slots=True)
class Arrays:
    """A version as host arrays, by published name."""

    manifest: WeightManifest
    arrays: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def names(self) -> Sequence[str]:
        """The tensors that travel."""
        return tuple(self.arrays)


class ObjectStore:
    """Offers `Arrays`. One copy per node, shared by its engines."""

    keeps_offers = True

    def __init__(self, setting: Setting) -> None:
        self._rank = setting.rank

    def offer(self, manifest: WeightManifest, names: Sequence[str], weights: WeightStream) -> Arrays | None:
        """Copy the weights to host memory, on rank 0."""
        arrays = {name: to_host(tensor) for name, tensor, _ in weights(names) if self._rank == 0}
        return Arrays(manifest, arrays) if self._rank == 0 else None

    def send(self, offer: Arrays, weights: WeightStream) -> None:
        """Do nothing: the offer holds the weights."""

    def receive(self, offer: Arrays) -> Iterator[Piece]:
        """Tensors over copies of the arrays, which are read-only and may go away."""
        for name, array in offer.arrays.items():
            yield Piece(name, from_host(array, offer.manifest.tensors[name].dtype))


def to_host(tensor: Tensor) -> np.ndarray:
    """A contiguous host array of its own with a tensor's content."""
    host = tensor.detach().to("cpu", copy=True).contiguous()
    return (host.view(torch.uint16) if host.dtype == torch.bfloat16 else host).numpy()


def from_host(array: np.ndarray, dtype: str) -> Tensor:
    """The inverse of `to_host`; the tensor owns its memory."""
    return torch.from_numpy(np.array(array)).view(getattr(torch, dtype))
