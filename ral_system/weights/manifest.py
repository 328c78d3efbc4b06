"""Identity of published weights: what the learner sent, what an engine holds, and whether they are the same bytes.

numpy has no bfloat16, so this file defines the one conversion: a bfloat16 tensor travels as the uint16 array of its bit
patterns, and its manifest entry says `bfloat16`. Every other dtype travels as the numpy array of the same name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch

from ral_system.errors import WeightSyncError
from ral_system.types import TensorDigest, WeightManifest, Weights

BFLOAT16 = "bfloat16"
_SHOWN = 3


def to_host(tensor: torch.Tensor) -> tuple[np.ndarray, str]:
    """A tensor as a contiguous host array and its dtype's name. Shares memory with a contiguous CPU tensor."""
    host = tensor.detach().cpu().contiguous()
    if host.dtype == torch.bfloat16:
        return host.view(torch.uint16).numpy(), BFLOAT16
    return host.numpy(), str(host.dtype).removeprefix("torch.")


def from_host(array: np.ndarray, dtype: str) -> torch.Tensor:
    """The inverse of `to_host`. The result owns its memory: arrays of an object store are read-only and may go away."""
    tensor = torch.from_numpy(np.array(array))
    if dtype == BFLOAT16:
        return tensor.view(torch.bfloat16)
    if str(tensor.dtype) != f"torch.{dtype}":
        raise WeightSyncError(f"an array of {array.dtype} cannot be a tensor of {dtype}")
    return tensor


def digest_array(array: np.ndarray, dtype: str | None = None) -> TensorDigest:
    """Shape, dtype and sha256 of the bytes in C order. `dtype` names a type that numpy lacks."""
    contiguous = np.ascontiguousarray(array)
    sha256 = hashlib.sha256(contiguous.reshape(-1).view(np.uint8).data).hexdigest()
    return TensorDigest(tuple(array.shape), dtype or str(array.dtype), sha256)


def build_manifest(
    version: int, arrays: Mapping[str, np.ndarray], dtypes: Mapping[str, str] | None = None
) -> WeightManifest:
    """The manifest of `arrays`; `dtypes` overrides the dtype names of those that numpy cannot express."""
    dtypes = dtypes or {}
    return WeightManifest(version, {name: digest_array(array, dtypes.get(name)) for name, array in arrays.items()})


def build_weights(version: int, tensors: Mapping[str, torch.Tensor]) -> Weights:
    """One publishable version of named tensors: copied to host memory, so that training may go on."""
    host = {name: to_host(tensor.detach().to("cpu", copy=True)) for name, tensor in tensors.items()}
    arrays = {name: array for name, (array, _) in host.items()}
    return Weights(build_manifest(version, arrays, {name: dtype for name, (_, dtype) in host.items()}), arrays)


def verify_loaded(published: WeightManifest, loaded: WeightManifest) -> None:
    """Raise WeightSyncError unless an engine holds exactly the published version."""
    complaints = []
    if published.version != loaded.version:
        complaints.append(f"version {loaded.version} instead of {published.version}")
    missing = sorted(published.tensors.keys() - loaded.tensors.keys())
    unexpected = sorted(loaded.tensors.keys() - published.tensors.keys())
    common = sorted(published.tensors.keys() & loaded.tensors.keys())
    different = [
        _difference(name, published, loaded) for name in common if published.tensors[name] != loaded.tensors[name]
    ]
    for what, names in (("missing", missing), ("unexpected", unexpected), ("different", different)):
        if names:
            complaints.append(f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}")
    if complaints:
        raise WeightSyncError(f"weights {published.version}: the engine holds other weights ({'; '.join(complaints)})")


def _difference(name: str, published: WeightManifest, loaded: WeightManifest) -> str:
    sent, held = published.tensors[name], loaded.tensors[name]
    if (sent.shape, sent.dtype) != (held.shape, held.dtype):
        return f"{name} is {held.dtype}{list(held.shape)}, published {sent.dtype}{list(sent.shape)}"
    return f"{name} (sha256 {held.sha256[:8]}…, published {sent.sha256[:8]}…)"
