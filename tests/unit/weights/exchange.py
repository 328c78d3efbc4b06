"""A learner and engines with a small model, between which weights travel."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ral_system.types import WeightManifest
from ral_system.weights.engine_memory import EngineMemory, held_manifest
from ral_system.weights.transfer.broadcast import Broadcast
from ral_system.weights.transfer.shared_memory import SharedMemory
from ral_system.weights.transfer.transfer import Piece, Setting, Transfer, WeightStream

STREAMED = [Broadcast, SharedMemory]


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(5, 3, dtype=dtype), nn.Linear(3, 2, bias=False, dtype=dtype)


class Run:
    """A learner's rank, and engines with a model each, that exchange offers as processes do."""

    def __init__(self, kind: type[Transfer[Any]], folder: Path, engines: int = 2, timeout_s: float = 20.0) -> None:
        setting = Setting(folder / "weights", 1, 0, engines, 1, "127.0.0.1", timeout_s)
        self.learner = kind(setting)
        self.engines = [kind(replace(setting, rank=rank)) for rank in range(engines)]
        self.threads = ThreadPoolExecutor(engines + 1)
        self.damage: Callable[[str, Tensor], None] = lambda name, tensor: None

    def exchange(self, offer: Any, weights: WeightStream, models: Sequence[nn.Module]) -> list[WeightManifest]:
        sent = self.threads.submit(self.learner.send, offer, weights)
        loads = [self.threads.submit(self.load, *each) for each in zip(self.engines, models, [offer] * 9, strict=False)]
        found = [load.exception() or load.result() for load in loads]
        for failed in (*found, sent.exception()):
            if isinstance(failed, BaseException):
                raise failed
        return found  # type: ignore[return-value]

    def load(self, transfer: Transfer[Any], model: nn.Module, offer: Any) -> WeightManifest:
        offer, memory = pickle.loads(pickle.dumps(offer)), EngineMemory.same_names(model)  # noqa: S301
        held = memory.load(self.damaged(transfer.receive(offer)), offer.manifest.tensors)
        return held_manifest(offer.manifest, offer.names, [held])

    def damaged(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self.damage(piece.name, piece.tensor)
            yield piece
            del piece
