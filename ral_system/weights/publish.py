"""Weight publication: learner to rollout engines, verified."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from ral_system.errors import WeightTransferError
from ral_system.protocols import Generator, Learner, Ref
from ral_system.types import TensorDigest, WeightManifest
from ral_system.weights.manifest import verify_loaded


@dataclass(frozen=True, slots=True)
class Published:
    """A version that engines can load: its identity, the tensors that travel, and the learner's offer of them."""

    manifest: WeightManifest
    names: tuple[str, ...]
    offer: Ref
    read: Mapping[str, TensorDigest]
    """Digests of the tensors that travel, if they were read for the offer."""


class Publisher:
    """Makes every rollout engine hold the learner's weights.

    What every engine is known to hold already is not sent: what is frozen travels once, and weights that engines have
    read from the same disk as the learner not at all.
    """

    def __init__(self, learner: Learner, generator: Generator) -> None:
        self._learner, self._generator = learner, generator
        self._held: dict[str, TensorDigest] | None = None
        self._offered: list[Published] = []  # and not loaded yet
        self._lock = threading.Lock()  # one thread may offer while another loads what was offered before

    def publish(self, version: int) -> int:
        """Offer and load; return how many tensors are proved to be in the engines, over all of them.

        Gate: every tensor sent is afterwards in each engine, by checksums that the learner computes of what it sends
        and engines of their memory; the others were proved when they were sent. Raises WeightSyncError. A transfer
        that fails is tried once more, over a new connection.
        """
        published = self.offer(version)
        try:
            return self.load(published)
        except WeightTransferError as error:
            print(f"{error}; sending them again", file=sys.stderr, flush=True)
            return self.load(self._offer(published.manifest, published.names))

    def forget(self) -> None:
        """Send everything with the next version: engines gave their memory up."""
        self._held = {}

    def offer(self, version: int) -> Published:
        """The learner's current weights as a version, to be loaded now or, if offers are kept, later."""
        manifest = self._learner.publish(version)
        held = self._held
        if held is None:
            held = self._held = common([found.tensors for found in self._generator.held(manifest)])
        names = tuple(name for name, digest in manifest.tensors.items() if held.get(name) != digest)
        return self._offer(manifest, names)

    def load(self, published: Published) -> int:
        """Load an offered version into every engine, and verify it; return what `publish` does."""
        try:
            sent = self._learner.send(published.offer)
            try:
                found = self._generator.load_weights(published.offer)
            except WeightTransferError:
                with suppress(WeightTransferError):
                    sent()  # both sides give up before they connect again
                raise
            read = {**published.read, **sent()}
        finally:
            with self._lock:
                self._offered.remove(published)
        travelled = WeightManifest(published.manifest.version, {name: read[name] for name in published.names})
        for loaded in found:
            verify_loaded(travelled, loaded)
        with self._lock:
            unsure = {name for later in self._offered for name in later.names}
            held = {**published.manifest.tensors, **travelled.tensors}
            self._held = {name: digest for name, digest in held.items() if name not in unsure}
        return len(found) * len(published.manifest.tensors)

    def _offer(self, manifest: WeightManifest, names: tuple[str, ...]) -> Published:
        read, offer = self._learner.offer(manifest, names)
        published = Published(manifest, names, offer, read)
        with self._lock:
            self._offered.append(published)
            # Until it is loaded, which of the two versions an engine holds is not known.
            self._held = {name: digest for name, digest in (self._held or {}).items() if name not in names}
        return published


def common(engines: list[Mapping[str, TensorDigest]]) -> dict[str, TensorDigest]:
    """Return the tensors that all engines hold with equal digests."""
    first, *others = engines
    return {name: digest for name, digest in first.items() if all(other.get(name) == digest for other in others)}
