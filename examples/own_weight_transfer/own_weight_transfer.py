"""Weights through a socket of this machine, to one engine: a toy that keeps nothing of what it offers."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from ral_system.errors import WeightSyncError
from ral_system.types import TensorDigest, WeightManifest
from ral_system.weights.manifest import digest_array, to_host
from ral_system.weights.transfer.object_store import differing
from ral_system.weights.transfer.transfer import FullState

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class SocketOffer:
    """Where an engine finds a version, and the secret that it must show."""

    manifest: WeightManifest
    port: int
    secret: str


class Socket:
    """Offers a port, and sends the weights to the one engine that connects to it."""

    keeps_offers = False

    def __init__(self, folder: Path, waiting: int) -> None:
        self._listener: socket.socket | None = None
        self._content = b""

    def offer(self, version: int, full_state: FullState) -> SocketOffer | None:
        """Serialise the weights on rank 0 and listen; training may go on."""
        state = full_state()
        if state is None:
            return None
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        manifest = WeightManifest(version, {name: digest_array(*to_host(t)) for name, t in tensors.items()})
        self._content = save(tensors)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIMEOUT_S)
        return SocketOffer(manifest, self._listener.getsockname()[1], secrets.token_hex(16))

    def send(self, offer: SocketOffer) -> None:
        """Wait for the engine and send. Ranks that offered nothing have nothing to send."""
        if self._listener is None:
            return
        with self._listener as listener, listener.accept()[0] as engine:
            engine.settimeout(TIMEOUT_S)
            if not secrets.compare_digest(engine.recv(64).decode(), offer.secret):
                raise WeightSyncError(f"weights {offer.manifest.version}: a stranger asked for them")
            engine.sendall(self._content)
        self._listener, self._content = None, b""

    def receive(self, offer: SocketOffer) -> Received:
        """Connect, show the secret, and read until the end."""
        parts = []
        with socket.create_connection(("127.0.0.1", offer.port), timeout=TIMEOUT_S) as learner:
            learner.sendall(offer.secret.encode())
            while part := learner.recv(1 << 20):
                parts.append(part)
        return Received(offer.manifest, load(b"".join(parts)))


class Received:
    """Tensors in memory."""

    def __init__(self, manifest: WeightManifest, tensors: dict[str, Tensor]) -> None:
        self.manifest, self._tensors = manifest, tensors

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Published name and tensor."""
        yield from self._tensors.items()

    def identity(self, name: str, held: Sequence[Tensor]) -> TensorDigest | None:
        """Digest of what was received, or of a copy in the engine that differs from it."""
        if (other := differing(held, self._tensors[name])) is not None:
            return other
        return digest_array(*to_host(self._tensors[name])) if held else None
