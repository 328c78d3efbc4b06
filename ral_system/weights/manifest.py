"""Comparison of what was published with what an engine holds."""

from __future__ import annotations

from ral_system.errors import WeightSyncError
from ral_system.types import WeightManifest

_SHOWN = 3


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
    return f"{name} (checksum {held.checksum[:8]}…, published {sent.checksum[:8]}…)"
