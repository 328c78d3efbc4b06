"""An exponential moving average of trained weights, as an anchor for attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ral_system.models.host_copies import HostCopies
from ral_system.training.engine import Engine
from ral_system.training.weights_in_place import in_place
from ral_system.types import Held


class WeightAverage:
    """a ← decay · a + (1 - decay) · w after every optimiser update, in float32; begins at the weights themselves.

    Each rank averages what it holds of the engine's trained weights: parameters, or shards of them.
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        self._engine = engine
        self._weights = engine.trained_weights()
        self._decay = decay
        self._average = {name: w.detach().float().clone() for name, w in self._weights.items()}
        self._host = HostCopies(engine.device)

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the average."""
        for name, weight in self._weights.items():
            self._average[name].lerp_(weight.float(), 1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the average's weights inside the block, and restore its own bit for bit."""
        with in_place(self._engine, self._average):
            yield

    def hold(self, held: Held) -> None:
        """Keep the average on the device while all is held there, else in host memory."""
        if held is Held.ALL:
            self._host.come_back()
        else:
            self._host.leave(self._average)

    def save(self, file: Path) -> None:
        """Write the average."""
        save_file(self._average, file)

    def load(self, file: Path) -> None:
        """Continue from `save`."""
        for name, average in load_file(file).items():
            self._average[name].copy_(average)  # some may be in host memory, others not
