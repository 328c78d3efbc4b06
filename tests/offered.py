"""Weight versions as a learner in the same process would offer them."""

from collections.abc import Mapping

from torch import Tensor

from ral_system.types import WeightManifest
from ral_system.weights.digest import digest
from ral_system.weights.transfer.object_store import Arrays, to_host


def manifest_of(version: int, tensors: Mapping[str, Tensor]) -> WeightManifest:
    return WeightManifest(version, {name: digest(tensor) for name, tensor in tensors.items()})


def offered(version: int, tensors: Mapping[str, Tensor]) -> Arrays:
    """All of these tensors travel."""
    return Arrays(manifest_of(version, tensors), {name: to_host(tensor) for name, tensor in tensors.items()})
