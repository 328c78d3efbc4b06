"""Identity of published weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

UNREAD = ""
"""In place of a checksum, until somebody reads the tensor."""


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """Identity of one published tensor. `checksum`: 32 hexadecimal digits, see `weights.digest`, or UNREAD."""

    shape: tuple[int, ...]
    dtype: str
    checksum: str


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """Contents of a weight version: Hugging Face parameter name → digest.

    Example: `WeightManifest(version=3, tensors={"lm_head.weight": TensorDigest((211, 128), "float32", "ab12…")})`
    """

    version: int
    tensors: Mapping[str, TensorDigest]


@dataclass(frozen=True, slots=True)
class EngineNames:
    """What a rollout engine's loader calls weights that are published under other names.

    Example: `EngineNames({"model.vision_tower.": "model.vision_tower.vision_model."}, unused=("model.tail.",))`
    """

    prefixes: Mapping[str, str] = field(default_factory=dict)
    """Beginnings of published names, and what takes their place."""
    unused: tuple[str, ...] = ()
    """Beginnings of the published names of weights that the engine's model does not have, and nothing reads."""

    def of(self, name: str) -> str | None:
        """The engine's name for a published one; None for a weight that it does not have."""
        if name.startswith(self.unused):
            return None
        for prefix, own in self.prefixes.items():
            if name.startswith(prefix):
                return own + name.removeprefix(prefix)
        return name
