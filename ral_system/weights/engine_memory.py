"""Where an engine keeps each published tensor: weights are written there in place, and read back for the proof.

Engines rename and fuse parameters (q, k, v into one matrix), pad vocabularies and, with tensor parallelism, hold parts
of them. Nothing here knows their conventions: the engine's own loader is run once on tensors without memory, and what
it would copy where is noted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ral_system.errors import WeightSyncError
from ral_system.types import EngineNames, TensorDigest, WeightManifest
from ral_system.weights.digest import SUMS, Region, as_numbers, copy_and_add_sums, digest_of_sums, sums
from ral_system.weights.transfer.transfer import Piece

Sums = tuple[int, ...]
Held = Mapping[str, Sequence[tuple[Region, Sums]]]
"""What one process of an engine holds: published name → its parts of the tensor, with their share of the checksum."""
UNPUBLISHED = "engine:"
"""Prefix of an engine's parameters that nothing published fills."""


@dataclass(frozen=True, slots=True)
class Place:
    """Memory of the engine that holds a region of a published tensor."""

    memory: Tensor
    region: Region


class _Loaded:
    """A place, and the checksum of what has come so far."""

    def __init__(self, place: Place) -> None:
        self.place, self._rows = place, 0
        self.sums_S = torch.zeros(SUMS, dtype=torch.int64, device=place.memory.device)

    @property
    def complete(self) -> bool:
        """Whether all rows have come."""
        return self._rows == len(self.place.region.rows)

    def add(self, rows: slice, region: Region, piece: Tensor, dtype: torch.dtype) -> None:
        """Copy this region of a piece to these rows of the place, and read them back in the published dtype."""
        own = self.place.memory[rows] if self.place.region.by_rows else self.place.memory
        part = region.view(piece.contiguous())
        copy_and_add_sums(self.sums_S, part, own, self.place.region, rows.start, read_back=dtype)
        self._rows += rows.stop - rows.start


class EngineMemory:
    """The places of all published tensors in the model of one process."""

    def __init__(self, places: Mapping[str, Sequence[Place]], model: nn.Module) -> None:
        self._places, self._parameters = places, dict(model.named_parameters())
        self._apart = False

    @classmethod
    def same_names(cls, model: nn.Module) -> EngineMemory:
        """The places in a model that keeps the published names, as transformers does."""
        own = model.state_dict(keep_vars=True)
        return cls({name: [Place(w.data, Region.whole(w.shape))] for name, w in own.items()}, model)

    @classmethod
    def traced(
        cls,
        model: nn.Module,
        load: Callable[[Iterable[tuple[str, Tensor]]], Any],
        published: Mapping[str, TensorDigest],
        names: EngineNames,
    ) -> EngineMemory:
        """The places to which a model's `load` copies published tensors, which it is given under its own `names`.

        Raises WeightSyncError if it would not copy into the model's own memory.
        """
        trace = _Trace(published, names)
        try:
            with torch.no_grad(), trace:
                load(trace.tensors())
        except (KeyError, ValueError) as error:  # vLLM's of a name that it does not know
            raise WeightSyncError(f"the engine cannot load the published weights: {error}") from error
        own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        for name, places in trace.places.items():
            if any(_storage(place.memory) not in own for place in places):
                raise WeightSyncError(
                    f"the engine holds {name} in another form than it is published in (is it quantised?), so it cannot "
                    "be updated in place; set rollout=hf"
                )
        return cls(trace.places, model)

    @torch.no_grad()
    def load(self, pieces: Iterable[Piece], published: Mapping[str, TensorDigest]) -> Held:
        """Copy tensors into their places; return what `held` does, of these.

        Each piece is read back while the sender prepares the next ones. A tensor that the engine has no place for is
        dropped. Raises WeightSyncError if two tensors have a place in common, since the second would change what was
        read.
        """
        self._require_apart(published)
        found: dict[tuple[str, int], _Loaded] = {}
        try:
            for name, tensor, first in pieces:
                for index, place in enumerate(self._places_of(name, published)):
                    if (part := place.region.within(first, tensor.shape)) is not None:
                        loaded = found.get((name, index)) or found.setdefault((name, index), _Loaded(place))
                        loaded.add(*part, tensor, _dtype(published[name]))
                del tensor  # the sender takes its memory back when the next one is asked for
        finally:
            if isinstance(pieces, Generator):
                pieces.close()  # after a failure, the sender need not wait for us
        whole = [(name, each.place.region, each.sums_S) for (name, _), each in found.items() if each.complete]
        return self._numbers(whole, published)

    def held(self, names: Collection[str], published: Mapping[str, TensorDigest]) -> Held:
        """Return this process's parts of the tensors, read from its memory and rounded to the published dtypes."""
        return self._numbers([each for name in names for each in self._sums(name, published)], published)

    def _sums(self, name: str, published: Mapping[str, TensorDigest]) -> list[tuple[str, Region, Tensor]]:
        return [
            (name, place.region, sums(place.memory.to(_dtype(published[name])), place.region))
            for place in self._places_of(name, published)
        ]

    def _places_of(self, name: str, published: Mapping[str, TensorDigest]) -> list[Place]:
        """Return the places of a tensor. One of another shape than was published is left out: the proof then fails."""
        return [place for place in self._places.get(name, ()) if place.region.shape == published[name].shape]

    def _numbers(self, pending: Iterable[tuple[str, Region, Tensor]], published: Mapping[str, TensorDigest]) -> Held:
        """Wait for the device, which has computed ahead. With the sums, those of parameters that nothing fills."""
        found: dict[str, list[tuple[Region, Sums]]] = {}
        for name, region, sums_S in pending:
            found.setdefault(name, []).append((region, as_numbers(sums_S)))
        filled = {_storage(place.memory) for name in published for place in self._places.get(name, ())}
        for name, parameter in self._parameters.items():
            if _storage(parameter) not in filled:
                region = Region.whole(parameter.shape)
                found[f"{UNPUBLISHED}{name}"] = [(region, as_numbers(sums(parameter, region)))]
        return found

    def _require_apart(self, published: Collection[str]) -> None:
        by_storage: dict[int, dict[str, list[Tensor]]] = {}
        for name in () if self._apart else published:
            for place in self._places.get(name, ()):
                by_storage.setdefault(_storage(place.memory), {}).setdefault(name, []).append(place.memory)
        for names in by_storage.values():
            (first, *further), *more = names.values()
            if not further and not more:
                continue
            taken = torch.zeros(first.untyped_storage().nbytes() // first.element_size(), dtype=torch.bool)
            for name, memories in names.items():
                own = [taken.as_strided(memory.shape, memory.stride(), memory.storage_offset()) for memory in memories]
                if any(bool(part.any()) for part in own):
                    others = ", ".join(other for other in names if other != name)
                    raise WeightSyncError(
                        f"the engine holds {name} in memory that it shares with {others}, so they cannot be verified; "
                        "set rollout=hf"
                    )
                for part in own:
                    part.fill_(True)
        self._apart = True


def held_manifest(published: WeightManifest, names: Collection[str], processes: Sequence[Held]) -> WeightManifest:
    """The manifest of what an engine holds under `names`, put together from its processes' parts.

    A tensor that the engine has no place for, or not for all of it, is left out. A part that is held several times
    counts once; if the copies differ, the tensor's checksum is `copies differ`.
    """
    tensors: dict[str, TensorDigest] = {}
    for name in dict.fromkeys((*names, *(name for held in processes for name in held))):
        parts: dict[Region, set[Sums]] = {}
        for region, numbers in (part for held in processes for part in held.get(name, ())):
            parts.setdefault(region, set()).add(numbers)
        if name.startswith(UNPUBLISHED):
            tensors[name] = TensorDigest(next(iter(parts)).shape, "unpublished", "")
            continue
        entry = published.tensors[name]
        if not parts or sum(region.elements for region in parts) != math.prod(entry.shape):
            continue
        if any(len(copies) > 1 for copies in parts.values()):
            tensors[name] = TensorDigest(entry.shape, entry.dtype, "copies differ")
        else:
            shares = [numbers for (numbers,) in parts.values()]
            whole = [sum(share) for share in zip(*shares, strict=True)]
            tensors[name] = digest_of_sums(entry.shape, getattr(torch, entry.dtype), whole)
    return WeightManifest(published.version, tensors)


class _Trace(TorchDispatchMode):
    """Notes the copies of tensors without memory into others, and makes none of them."""

    def __init__(self, published: Mapping[str, TensorDigest], names: EngineNames) -> None:
        super().__init__()
        self._published, self._names = published, names
        self._name, self._tensor = "", torch.empty(0, device="meta")
        self.places: dict[str, list[Place]] = {}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names that the engine knows with tensors that have a shape only."""
        for name, digest in self._published.items():
            if (own := self._names.of(name)) is not None:
                self._name, self._tensor = name, torch.empty(digest.shape, dtype=_dtype(digest), device="meta")
                yield own, self._tensor

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        if function is not torch.ops.aten.copy_.default or not arguments[1].is_meta:
            return function(*arguments, **(named or {}))
        memory, source = arguments[:2]
        if memory.shape != source.shape:
            raise WeightSyncError(
                f"the engine would copy {self._name}, {list(source.shape)}, into memory of another shape, "
                f"{list(memory.shape)}, so it cannot be verified; set rollout=hf"
            )
        if source.untyped_storage()._cdata != self._tensor.untyped_storage()._cdata:
            raise WeightSyncError(
                f"the engine would load what it computes from {self._name}, so it cannot be updated in place; set "
                "rollout=hf"
            )
        self.places.setdefault(self._name, []).append(Place(memory, Region.of(source, self._tensor.shape)))
        return memory


def _dtype(digest: TensorDigest) -> torch.dtype:
    found: torch.dtype = getattr(torch, digest.dtype)
    return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
