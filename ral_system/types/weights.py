"""Published weights and their identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """Identity of one published tensor."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """Contents of a weight version: Hugging Face parameter name → digest.

    Example: `WeightManifest(version=3, tensors={"lm_head.weight": TensorDigest((211, 128), "float32", "ab12…")})`
    """

    version: int
    tensors: Mapping[str, TensorDigest]


@dataclass(frozen=True, slots=True)
class Weights:
    """One published weight version: the manifest and the host arrays it describes."""

    manifest: WeightManifest
    arrays: Mapping[str, np.ndarray] = field(repr=False)
