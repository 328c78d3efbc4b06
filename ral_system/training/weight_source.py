"""The learner's weights in the form in which they are published."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from ral_system.models.named_weights import named_weights
from ral_system.training.engine import Engine
from ral_system.types import TensorDigest, WeightManifest
from ral_system.weights.digest import digest


class WeightSource:
    """Weights of an engine under Hugging Face names, floating-point ones in `dtype`: what rollout engines compute in.

    Every rank calls each method.
    """

    def __init__(self, engine: Engine, dtype: torch.dtype, rank: int) -> None:
        self._engine, self._dtype, self._rank = engine, dtype, rank
        self._frozen: dict[str, TensorDigest] = {}

    def manifest(self, version: int) -> WeightManifest | None:
        """The identity of the current weights, on rank 0. What is not trained is read once."""
        weights = named_weights(self._engine.policy.model)
        unread = [name for name in weights if name not in self._frozen]
        digests = {}
        for name, weight in self.stream(unread):
            digests[name] = digest(weight) if self._rank == 0 else TensorDigest(tuple(weight.shape), "", "")
        found = {name: self._frozen.get(name) or digests[name] for name in weights}
        self._frozen = {name: found[name] for name, weight in weights.items() if not weight.requires_grad}
        return WeightManifest(version, found) if self._rank == 0 else None

    def stream(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """The named weights, whole and one at a time, in the model's order; a `WeightStream`."""
        for name, weight in self._engine.weights(names):
            whole = weight.detach()
            yield name, whole.to(self._dtype) if whole.is_floating_point() else whole

    def forget(self) -> None:
        """Read everything again: weights were loaded."""
        self._frozen.clear()
