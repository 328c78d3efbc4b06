"""Protocol between a learner rank and the engine that holds weights, gradients and optimiser."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ral_system.algorithms.token_read import TokenRead
from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import TensorBatch
from ral_system.models.policy import PolicyModel, PolicyOutput
from ral_system.types import Held


class Engine(Protocol):
    """One rank of the trained policy."""

    device: torch.device
    policy: PolicyModel

    def forward(
        self, batch: TensorBatch, reads: Sequence[AttentionRead] = (), tokens: TokenRead | None = None
    ) -> PolicyOutput:
        """Run the policy; all ranks call it equally often."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a loss share's gradient. `last` marks the update's final micro-batch."""
        ...

    def step(self) -> float:
        """Sum gradients over ranks, clip, update, clear; returns the gradient norm before clipping."""
        ...

    def learning_rate(self) -> float:
        """Text model's learning rate at the last `step`."""
        ...

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Add a small float64 tensor up over ranks."""
        ...

    def trained_weights(self) -> Mapping[str, Tensor]:
        """Return the tensors that training changes in place, by name: trained parameters, or this rank's shards."""
        ...

    def weights_replaced(self) -> None:
        """Tell the engine that someone wrote into `trained_weights`; every rank calls it."""
        ...

    def weights(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the named weights whole, in the model's order, on every rank; every rank takes all that comes.

        Under ZeRO 3 one tensor is gathered at a time. Drop it before you ask for the next, or both are in memory.
        """
        ...

    def hold(self, held: Held) -> None:
        """Keep this on the device, the rest in host memory; between updates, on every rank.

        What a rank holds shrinks step by step, and grows to all of it only.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write this rank's share of what `load` needs to continue exactly. Frozen weights are not in it."""
        ...

    def load(self, folder: Path) -> None:
        """Continue from `save`."""
        ...
