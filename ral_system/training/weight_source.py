"""The learner's weights in the form in which they are published."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ral_system.models.loading import save_model
from ral_system.models.lora import Adapters
from ral_system.models.named_weights import named_weights
from ral_system.training.engine import Engine
from ral_system.types import TensorDigest, WeightManifest
from ral_system.weights.digest import digest


class WeightSource:
    """Weights of an engine under Hugging Face names, floating-point ones in `dtype`: what rollout engines compute in.

    Adapters are merged. Every rank calls each method.
    """

    def __init__(self, engine: Engine, dtype: torch.dtype, rank: int, adapters: Adapters | None = None) -> None:
        self._engine, self._dtype, self._rank, self._adapters = engine, dtype, rank, adapters
        self._frozen: dict[str, TensorDigest] = {}

    def manifest(self, version: int) -> WeightManifest | None:
        """The identity of the current weights, on rank 0. What is not trained is read once."""
        held = named_weights(self._engine.policy.model)
        weights = self._parts(held)
        unread = [name for name in weights if name not in self._frozen]
        digests = {}
        for name, weight in self.stream(unread):
            digests[name] = digest(weight) if self._rank == 0 else TensorDigest(tuple(weight.shape), "", "")
        found = {name: self._frozen.get(name) or digests[name] for name in weights}
        trained = {name for name, w in held.items() if w.requires_grad or not isinstance(w, nn.Parameter)}
        self._frozen = {name: found[name] for name, parts in weights.items() if trained.isdisjoint(parts)}
        return WeightManifest(version, found) if self._rank == 0 else None

    def stream(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """The named weights, whole and one at a time, in the model's order; a `WeightStream`."""
        parts = self._parts(named_weights(self._engine.policy.model))
        weights = self._engine.weights({part for name in names for part in parts[name]})
        for name, weight in weights if self._adapters is None else self._adapters.merged(weights):
            whole = weight.detach()
            yield name, whole.to(self._dtype) if whole.is_floating_point() else whole

    def save(self, processor: Any, folder: Path, start: Path) -> None:
        """Write model and processor in Hugging Face format, and adapters beside it, on rank 0.

        `start` is the model folder that training started from.
        """
        model, own = self._engine.policy.model, {}
        for name, weight in self._engine.weights(named_weights(model)):
            if self._rank == 0:
                own[name] = weight.detach().to("cpu", copy=True)
        if self._rank:
            return
        if self._adapters is None:
            save_model(model, own, processor, folder, start)
        else:
            save_model(model, dict(self._adapters.merged(own.items())), processor, folder, start)
            self._adapters.save(own, folder / "adapter", start)

    def _parts(self, held: Mapping[str, Tensor]) -> Mapping[str, Sequence[str]]:
        """Map each published name to the names of the engine's weights that make it up."""
        return {name: (name,) for name in held} if self._adapters is None else self._adapters.parts(held)

    def forget(self) -> None:
        """Read everything again: weights were loaded."""
        self._frozen.clear()
