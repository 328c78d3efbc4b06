"""Weight publication: learner to rollout engines, verified."""

from __future__ import annotations

from ral_system.protocols import Generator, Learner, Ref
from ral_system.types import WeightManifest
from ral_system.weights.manifest import verify_loaded


def publish_weights(learner: Learner, generator: Generator, version: int) -> int:
    """Make every rollout engine hold the learner's current weights as `version`.

    Gate: what each engine holds afterwards equals what was published, key by key and byte by byte. Returns how
    many tensors were verified, over all engines. Raises WeightSyncError.
    """
    return load_published(learner, generator, *learner.publish(version))


def load_published(learner: Learner, generator: Generator, manifest: WeightManifest, offer: Ref) -> int:
    """The second half of `publish_weights`: from what the learner published on."""
    sent = learner.send(offer)
    held = generator.load_weights(offer)
    sent()
    for loaded in held:
        verify_loaded(manifest, loaded)
    return len(held) * len(manifest.tensors)
