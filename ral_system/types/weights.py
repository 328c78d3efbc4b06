"""Identity of published weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """Identity of one published tensor. `checksum`: 32 hexadecimal digits, see `weights.digest`."""

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
