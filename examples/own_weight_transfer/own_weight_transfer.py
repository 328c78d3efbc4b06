"""Weights through a socket of this machine, to one engine: a toy that keeps nothing of what it offers."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from safetensors.torch import load, save

from ral_system.errors import WeightSyncError
from ral_system.types import WeightManifest
from ral_system.weights.transfer.transfer import Piece, Setting, WeightStream


@dataclass(frozen=True)
class SocketOffer:
    """Where an engine finds a version, and the secret that it must show."""

    manifest: WeightManifest
    names: Sequence[str]
    port: int
    secret: str


class Socket:
    """Offers a port, and sends the weights to the one engine that connects to it."""

    keeps_offers = False

    def __init__(self, setting: Setting) -> None:
        self._rank, self._timeout_s = setting.rank, setting.timeout_s
        self._listener: socket.socket | None = None

    def offer(self, manifest: WeightManifest, names: Sequence[str], weights: WeightStream) -> SocketOffer | None:
        """Listen, on rank 0."""
        if self._rank:
            return None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(self._timeout_s)
        return SocketOffer(manifest, names, self._listener.getsockname()[1], secrets.token_hex(16))

    def send(self, offer: SocketOffer, weights: WeightStream) -> None:
        """Wait for the engine and send. Other ranks take part in gathering only."""
        tensors = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor, _ in weights(offer.names)}
        if self._listener is None:
            return
        with self._listener as listener, listener.accept()[0] as engine:
            engine.settimeout(self._timeout_s)
            if not secrets.compare_digest(engine.recv(64).decode(), offer.secret):
                raise WeightSyncError(f"weights {offer.manifest.version}: a stranger asked for them")
            engine.sendall(save(tensors))

    def receive(self, offer: SocketOffer) -> Iterator[Piece]:
        """Connect, show the secret, and read until the end."""
        parts = []
        with socket.create_connection(("127.0.0.1", offer.port), timeout=self._timeout_s) as learner:
            learner.sendall(offer.secret.encode())
            while part := learner.recv(1 << 20):
                parts.append(part)
        yield from (Piece(name, tensor) for name, tensor in load(b"".join(parts)).items())
