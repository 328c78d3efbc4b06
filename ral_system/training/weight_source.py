"""The learner's weights in the form in which they are published."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ral_system.models.loading import save_model
from ral_system.models.lora import Adapters
from ral_system.models.named_weights import named_weights
from ral_system.training.engine import Engine
from ral_system.types import UNREAD, TensorDigest, WeightManifest
from ral_system.weights.digest import SUMS, Region, add_sums, copy_and_add_sums, digest_of_sums, dtype_name
from ral_system.weights.transfer.transfer import Offer, Piece, Transfer, pieces


class _Unread(Piece):
    """A piece whose share of its tensor's checksum is added to `total` while it is copied, or by `read`."""

    region: Region
    total: Tensor
    was_read = False

    def copy_to(self, memory: Tensor) -> None:
        if self.was_read:
            super().copy_to(memory)
        else:
            copy_and_add_sums(self.total, self.tensor, memory, self.region, self.first)
            self.was_read = True

    def read(self) -> None:
        """Read it, unless it was read when it was copied."""
        if not self.was_read:
            add_sums(self.total, self.tensor, self.region, self.first)
            self.was_read = True


class WeightSource:
    """Weights of an engine under Hugging Face names, floating-point ones in `dtype`: what rollout engines compute in.

    Adapters are merged. Every rank calls each method.
    """

    def __init__(
        self,
        engine: Engine,
        dtype: torch.dtype,
        rank: int,
        transfer: Transfer[Any],
        adapters: Adapters | None = None,
    ) -> None:
        self._engine, self._dtype, self._rank, self._adapters = engine, dtype, rank, adapters
        self.transfer = transfer
        self._digests: dict[str, TensorDigest] = {}
        self._names: list[str] = []
        self._summed: list[str] = []
        self._sums: Tensor | None = None

    def manifest(self, version: int) -> WeightManifest | None:
        """The identity of the current weights, on rank 0.

        The first time all are read. Later the trained ones are UNREAD: they are read when they are sent, so ranks
        gather them once for a version.
        """
        held = named_weights(self._engine.policy.model)
        names = self._parts(held)
        if not self._digests:
            for _ in self.stream(names):
                pass
            found = self.read()
        else:
            trained = {name for name, w in held.items() if w.requires_grad or not isinstance(w, nn.Parameter)}
            for name, parts in names.items():
                if not trained.isdisjoint(parts):
                    self._digests[name] = replace(self._digests[name], checksum=UNREAD)
            found = self._digests
        return WeightManifest(version, dict(found)) if self._rank == 0 else None

    def stream(self, names: Collection[str], at_most: int | None = None) -> Iterator[Piece]:
        """The named weights in the model's order; a `WeightStream`.

        Rank 0 computes the checksum of each that is UNREAD: of a piece while it is copied or, if it is not, afterwards.
        """
        parts = self._parts(named_weights(self._engine.policy.model))
        self._names, self._summed, self._sums = list(names), [], None
        weights = self._engine.weights({part for name in names for part in parts[name]})
        for name, weight in weights if self._adapters is None else self._adapters.merged(weights):
            whole = weight.detach()
            whole = whole.to(self._dtype) if whole.is_floating_point() else whole
            known = self._digests.setdefault(name, TensorDigest(tuple(whole.shape), dtype_name(whole.dtype), UNREAD))
            unread = self._rank == 0 and known.checksum == UNREAD
            sums_S = self._sums_of(name, whole.device) if unread else None
            region = Region.whole(whole.shape)
            for piece in pieces(name, whole, at_most):
                if sums_S is not None:
                    piece = _Unread(*piece)
                    piece.region, piece.total = region, sums_S
                yield piece
                if isinstance(piece, _Unread):
                    piece.read()
            del weight, whole, piece  # before ranks gather the next one

    def offer(self, manifest: WeightManifest, names: Sequence[str]) -> tuple[Mapping[str, TensorDigest], Offer | None]:
        """Offer the named tensors of the version of the manifest: rank 0's offer, None on the others.

        With it the digests of what was read: of all that travels if the transfer keeps offers, else of nothing yet.
        """
        offer = self.transfer.offer(manifest, names, self.stream)
        return self.read(), offer

    def send(self, offer: Offer) -> Mapping[str, TensorDigest]:
        """Send what was offered to the engines that receive it now; return its digests, on rank 0.

        Not for transfers that keep offers.
        """
        self.transfer.send(offer, self.stream)
        return self.read()

    def read(self) -> Mapping[str, TensorDigest]:
        """The digests of what the last stream gave, on rank 0. Call it once after each stream."""
        if self._rank:
            return {}
        numbers = [] if self._sums is None else self._sums[: len(self._summed)].tolist()
        for name, pair in zip(self._summed, numbers, strict=True):
            known = self._digests[name]
            self._digests[name] = digest_of_sums(known.shape, getattr(torch, known.dtype), pair)
        found = {name: self._digests[name] for name in self._names}
        self._names, self._summed, self._sums = [], [], None
        return found

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

    def _sums_of(self, name: str, device: torch.device) -> Tensor:
        """Return zeros, to which the pieces of a tensor add: a row of one tensor for all, so it is read back once."""
        if self._sums is None:
            self._sums = torch.zeros((len(self._names), SUMS), dtype=torch.int64, device=device)
        self._summed.append(name)
        return self._sums[len(self._summed) - 1]

    def _parts(self, held: Mapping[str, Tensor]) -> Mapping[str, Sequence[str]]:
        """Map each published name to the names of the engine's weights that make it up."""
        return {name: (name,) for name in held} if self._adapters is None else self._adapters.parts(held)

    def forget(self) -> None:
        """Read everything again: weights were loaded."""
        self._digests.clear()
