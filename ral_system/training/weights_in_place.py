"""Temporary replacement of the model's weights by an average or by the weights that made an earlier batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ral_system.errors import GateError
from ral_system.training.engine import Engine


@contextmanager
def in_place(engine: Engine, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the model these weights inside the block, and restore its own bit for bit. Every rank calls it."""
    weights = engine.trained_weights()
    own = {name: w.detach().clone() for name, w in weights.items()}
    _copy(engine, weights, values)
    try:
        yield
    finally:
        _copy(engine, weights, own)


class PastWeights:
    """The weights of the last few versions, in host memory: `max_staleness` + 1 copies of what this rank holds, none
    when nothing is ever stale.
    """

    def __init__(self, engine: Engine, max_staleness: int) -> None:
        self._engine, self._kept = engine, max_staleness + 1 if max_staleness else 0
        self._versions: dict[int, dict[str, Tensor]] = {}

    def remember(self, version: int) -> None:
        """Record the current weights as this version's."""
        if not self._kept:
            return
        weights = self._engine.trained_weights()
        self._versions[version] = {name: w.detach().to("cpu", copy=True) for name, w in weights.items()}
        for old in sorted(self._versions)[: -self._kept]:
            del self._versions[old]

    @contextmanager
    def at(self, version: int) -> Iterator[None]:
        """Give the model that version's weights inside the block. Raises GateError if the version is not kept."""
        if version not in self._versions:
            kept = ", ".join(map(str, sorted(self._versions))) or "none"
            raise GateError(f"scoring a batch needs weights {version}, but the learner keeps only: {kept}")
        with in_place(self._engine, self._versions[version]):
            yield


@torch.no_grad()
def _copy(engine: Engine, weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])
    engine.weights_replaced()
