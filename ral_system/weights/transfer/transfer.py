"""What a way for weights to travel must do, on the learner's side and on the engine's."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from ral_system.types import WeightManifest


class Piece(NamedTuple):
    """A published tensor on its way: whole, or some of its rows."""

    name: str
    tensor: Tensor
    first: int = 0
    """Index of its first row in the whole tensor's first dimension."""

    def copy_to(self, memory: Tensor) -> None:
        """Copy it to memory of the same shape and dtype. A learner's piece is then read for its checksum on the way."""
        memory.copy_(self.tensor)


def divided(shape: Sequence[int], row_bytes: int, at_most: int | None) -> Iterator[tuple[int, int]]:
    """Yield first row and number of rows of each piece of a tensor, of `at_most` bytes unless a row has more.

    A tensor of fewer than two dimensions is not divided: it has one row, and counts as one piece from 0 on.
    """
    rows = shape[0] if len(shape) > 1 else 1
    step = rows if at_most is None else max(1, at_most // max(1, row_bytes))
    yield from ((first, min(step, rows - first)) for first in range(0, max(1, rows), max(1, step)))


def pieces(name: str, tensor: Tensor, at_most: int | None) -> Iterator[Piece]:
    """Yield a tensor in pieces, as `divided` says."""
    row_bytes = tensor[:1].nbytes if tensor.ndim > 1 else tensor.nbytes
    for first, count in divided(tensor.shape, row_bytes, at_most):
        yield Piece(name, tensor[first : first + count] if tensor.ndim > 1 else tensor, first)


class WeightStream(Protocol):
    """The learner's weights in published form."""

    def __call__(self, names: Collection[str], at_most: int | None = None) -> Iterator[Piece]:
        """Yield the named weights, whole or in pieces of `at_most` bytes, each valid until the next is asked for.

        Every learner rank must call it with the same arguments and take all that comes. Drop each piece before you ask
        for the next: its memory is reused.
        """
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a transfer takes place, and what this process is in it."""

    folder: Path
    """Folder inside the run that learner and engines may share."""
    waiting: int
    """How many offers may wait to be received."""
    rank: int
    """The learner's rank, or the engine process's number among all `receivers`."""
    receivers: int
    """Processes that receive: every engine's ranks."""
    senders: int
    """Learner ranks that send, each to the receivers beside it: all ranks when devices are shared, else one."""
    host: str
    """Address of learner rank 0, as the other processes of the run see it."""
    timeout_s: float
    """Bound on any wait for another process."""

    @classmethod
    def of_one_process(cls, folder: Path = Path(), *, waiting: int = 1, rank: int = 0) -> Setting:
        """The setting of a learner that hands weights to an engine in its own process."""
        return cls(folder, waiting, rank, receivers=1, senders=1, host="127.0.0.1", timeout_s=60.0)


class Offer(Protocol):
    """One published version on its way: what an engine needs in order to receive it. Picklable."""

    @property
    def manifest(self) -> WeightManifest:
        """The identity of all weights of the version."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """The tensors that travel. Engines hold the others already."""
        ...


OfferT = TypeVar("OfferT")


class Transfer(Protocol[OfferT]):
    """One way for weights to travel. Constructed with a `Setting` in every learner rank and every engine's processes.

    A controller calls `offer` on every rank, then hands rank 0's offer to the engines, which `receive` it. If offers
    are not kept, every rank calls `send` while the engines receive.
    """

    keeps_offers: bool
    """An offer may be received later, while the learner trains on. If not, nothing can be generated ahead of it."""

    def __init__(self, setting: Setting) -> None: ...

    def offer(self, manifest: WeightManifest, names: Sequence[str], weights: WeightStream) -> OfferT | None:
        """Offer the named tensors of a version: rank 0's offer, None on the others."""
        ...

    def send(self, offer: OfferT, weights: WeightStream) -> None:
        """Send what was offered to the engines that receive it now. Not called if offers are kept.

        Raises WeightTransferError if they do not receive it in time.
        """
        ...

    def receive(self, offer: OfferT) -> Iterator[Piece]:
        """Yield the named tensors in order, whole or in pieces, every row once. A piece is valid until the next is
        asked for.

        The caller drops each before that: its memory may be another process's, which takes it back.

        Raises WeightSyncError if the offer is not there or damaged, WeightTransferError if it does not come in time.
        """
        ...
