"""Weights from the learner's memory into the engines', bucket by bucket, while both sides wait for each other."""

from __future__ import annotations

import faulthandler
import secrets
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from ral_system.errors import WeightTransferError
from ral_system.types import WeightManifest
from ral_system.weights.transfer.buckets import BUCKET_BYTES, Bucket, buckets
from ral_system.weights.transfer.transfer import Piece, Setting, WeightStream


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the processes of a connection find each other. A new one for each connection."""

    host: str
    port: int
    name: str


@dataclass(frozen=True, slots=True)
class StreamOffer:
    """A version that is sent when it is received."""

    manifest: WeightManifest
    names: Sequence[str]
    meeting: Meeting
    bucket_bytes: int

    def buckets(self) -> Sequence[Bucket]:
        """The buckets in which the weights travel."""
        return buckets(self.manifest, self.names, self.bucket_bytes)


class Line(Protocol):
    """A connection from a sender to its receivers. A bucket is filled while the one before it is on its way."""

    def begin(self, dealt: Sequence[Bucket]) -> None:
        """Provide the sender's memory for the buckets of a version."""
        ...

    def buffer(self, bucket: Bucket) -> Tensor:
        """Return the sender's memory for a bucket, when the receivers are done with what was there."""
        ...

    def give(self, bucket: Bucket) -> None:
        """Start to send the bucket."""
        ...

    def finish(self) -> None:
        """Wait until every bucket has been received, then give the memory back, but for what is `kept`."""
        ...

    def take(self, dealt: Sequence[Bucket]) -> Iterator[Tensor]:
        """Receive the buckets of a version, each valid until the next is asked for.

        The receiver asks once more at the end, when it has dropped the last: the memory may then be given back.
        """
        ...

    def close(self) -> None:
        """Give the connection up, also in the middle of a version. Nobody is waited for.

        Raises RuntimeError if it cannot be ended.
        """
        ...


LineT = TypeVar("LineT", bound=Line)


def kept(memory: Tensor) -> Tensor:
    """Return what a line keeps of its memory until the next version: all of it on a CPU, nothing on a GPU.

    Getting new pages takes longer than filling them. A GPU's memory goes back to PyTorch, which may need it for others.
    """
    return memory.new_empty(0) if memory.is_cuda else memory


class Streamed(Generic[LineT]):
    """A transfer over a line, which serves one version after another, since connecting takes long.

    A line that fails is given up, on both sides; the next offer opens another.
    """

    keeps_offers = False

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._line: LineT | None = None
        self._meeting: Meeting | None = None
        self._store: Store | None = None
        self._offered: int | None = None

    @property
    def sends(self) -> bool:
        """Whether this rank of the learner sends."""
        return self._setting.rank == 0

    def bucket_bytes(self) -> int:
        """Return the size of a bucket: large enough to keep a network busy."""
        return BUCKET_BYTES

    def open_line(self, store: Store, *, sender: bool) -> LineT:
        """Connect; both sides call it, and wait for each other."""
        raise NotImplementedError

    def offer(self, manifest: WeightManifest, names: Sequence[str], weights: WeightStream) -> StreamOffer | None:
        """Say where to meet. Nothing is read yet: the learner must not train on before `send`.

        A version that is offered twice was not received: it gets a new line.
        """
        if self._setting.rank:
            return None
        if manifest.version == self._offered:
            self._drop()
            self._store = None
        if self._line is None:
            self._meeting = self._invite()
        assert self._meeting is not None
        self._offered = manifest.version
        return StreamOffer(manifest, tuple(names), self._meeting, self.bucket_bytes())

    def send(self, offer: StreamOffer, weights: WeightStream) -> None:
        """Gather the weights, and send them bucket by bucket."""
        stream = weights(offer.names, offer.bucket_bytes)
        try:
            if offer.names and self.sends:
                with self._to_the_end():
                    self._send(offer, stream)
        finally:
            for _ in stream:  # every rank gathers to the end, also one that sends nothing, or no longer
                pass

    def receive(self, offer: StreamOffer) -> Iterator[Piece]:
        """Pieces in the memory of one bucket."""
        if not offer.names:
            return
        dealt = offer.buckets()
        with self._to_the_end(), self._failing(offer, "received"):
            taken = self._connected(offer, sender=False).take(dealt)
            for bucket in dealt:
                buffer = next(taken)
                yield from bucket.pieces(buffer)
                del buffer  # the end tells the sender that its memory is no longer in use
            assert next(taken, None) is None

    def _send(self, offer: StreamOffer, stream: Iterator[Piece]) -> None:
        dealt = offer.buckets()
        with self._failing(offer, "sent"):
            line = self._connected(offer, sender=True)
            line.begin(dealt)
        for bucket in dealt:
            with self._failing(offer, "sent"):
                buffer = line.buffer(bucket)
            for slot in bucket.slots:
                piece = next(stream)
                assert (piece.name, piece.first) == (slot.name, slot.first), "weights come in the order of their names"
                piece.copy_to(slot.view(buffer))
                del piece  # before ranks gather the next tensor
            with self._failing(offer, "sent"):
                line.give(bucket)
        with self._failing(offer, "sent"):
            line.finish()

    def _invite(self) -> Meeting:
        """Return a new meeting, in the store that there is or a new one."""
        name = secrets.token_hex(8)
        if self._store is not None and self._meeting is not None:
            return replace(self._meeting, name=name)
        listener = socket.create_server((self._setting.host, 0))
        port = listener.getsockname()[1]
        # Bound to one address: by itself, the store would listen on all of them.
        self._store = TCPStore(
            self._setting.host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=self._timeout,
            master_listen_fd=listener.detach(),
        )
        return Meeting(self._setting.host, port, name)

    @property
    def _timeout(self) -> timedelta:
        return timedelta(seconds=self._setting.timeout_s)

    def _connected(self, offer: StreamOffer, *, sender: bool) -> LineT:
        """The line of an offer, opened if there is none yet."""
        if self._line is None or self._meeting != offer.meeting:
            self._drop()
            known, self._meeting = self._meeting, offer.meeting
            if self._store is None or known is None or replace(known, name=offer.meeting.name) != offer.meeting:
                self._store = TCPStore(offer.meeting.host, offer.meeting.port, is_master=False, timeout=self._timeout)
            self._line = self.open_line(PrefixStore(offer.meeting.name, self._store), sender=sender)
        return self._line

    def _drop(self) -> None:
        """Close the line, if there is one. One that cannot be closed is left: another takes its place."""
        line, self._line = self._line, None
        if line is None:
            return
        try:
            line.close()
        except RuntimeError as error:
            print(f"a connection for weights could not be closed: {error}", file=sys.stderr, flush=True)

    @contextmanager
    def _to_the_end(self) -> Iterator[None]:
        """Give the line up if a version is not sent or received to its end: the other side need not wait for long."""
        try:
            yield
        except BaseException:
            self._drop()
            self._store = None
            raise

    @contextmanager
    def _failing(self, offer: StreamOffer, done: str) -> Iterator[None]:
        """Raise WeightTransferError for a wait that takes too long or a connection that breaks; log the stacks."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, OSError) as error:
            faulthandler.dump_traceback(file=2)  # the process's log
            reason = (str(error).strip() or repr(error)).splitlines()[0].removesuffix(".")
            raise WeightTransferError(
                f"weights {offer.manifest.version} were not {done}: {reason} "
                f"(rollout.weight_timeout_s={self._setting.timeout_s:g})"
            ) from error
