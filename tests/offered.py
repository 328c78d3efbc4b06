"""Weight versions as a learner in the same process would offer them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from ral_system.types import WeightManifest
from ral_system.weights.digest import digest
from ral_system.weights.transfer.object_store import Arrays, to_host
from ral_system.weights.transfer.transfer import Piece, WeightStream, pieces

if TYPE_CHECKING:
    from ral_system.training.learner_rank import LearnerRank


def manifest_of(version: int, tensors: Mapping[str, Tensor]) -> WeightManifest:
    return WeightManifest(version, {name: digest(tensor) for name, tensor in tensors.items()})


def read_whole(rank: LearnerRank, version: int) -> WeightManifest | None:
    """Publish a version, and read all of its weights at once, as for a first publication."""
    rank._source.forget()
    return rank.publish(version)


def whole_pieces(tensors: Mapping[str, Tensor]) -> Iterator[Piece]:
    """All of these tensors, whole, as an engine receives them."""
    return stream(tensors)(tensors)


def stream(state: Mapping[str, Tensor], taken: list[str] | None = None) -> WeightStream:
    """A learner's weights; notes the names that are taken."""

    def named(names: Collection[str], at_most: int | None = None) -> Iterator[Piece]:
        for name, tensor in state.items():
            if name in names:
                if taken is not None:
                    taken.append(name)
                yield from pieces(name, tensor, at_most)

    return named


def offered(version: int, tensors: Mapping[str, Tensor]) -> Arrays:
    """All of these tensors travel."""
    return Arrays(manifest_of(version, tensors), {name: to_host(tensor) for name, tensor in tensors.items()})
