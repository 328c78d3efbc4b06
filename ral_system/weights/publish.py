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
    return load_published(generator, *learner.publish(version))


def load_published(generator: Generator, manifest: WeightManifest, weights: Ref) -> int:
    """The second half of `publish_weights`: from what the learner published on."""
    verified = 0
    for loaded in generator.load_weights(weights):
        verify_loaded(manifest, loaded)
        verified += len(manifest.tensors)
    return verified
