import pytest
import torch

from ral_system.errors import WeightSyncError
from ral_system.types import WeightManifest
from ral_system.weights.manifest import verify_loaded
from tests.offered import manifest_of

TENSORS = {name: torch.arange(6.0).reshape(2, 3) + i for i, name in enumerate("abcdef")}


def changed(**tensors: torch.Tensor) -> WeightManifest:
    return manifest_of(3, {**TENSORS, **tensors})


def test_equal_weights_pass() -> None:
    verify_loaded(manifest_of(3, TENSORS), manifest_of(3, {k: v.clone() for k, v in reversed(TENSORS.items())}))


@pytest.mark.parametrize(
    ("loaded", "complaint"),
    [
        (manifest_of(2, TENSORS), "version 2 instead of 3"),
        (manifest_of(3, {k: v for k, v in TENSORS.items() if k != "b"}), "1 missing: b"),
        (changed(z=torch.zeros(1)), "1 unexpected: z"),
        (changed(c=TENSORS["c"] + 1e-6), r"1 different: c \(checksum \w{8}…, published \w{8}…\)"),
        (changed(c=TENSORS["c"].reshape(3, 2)), r"c is float32\[3, 2\], published float32\[2, 3\]"),
        (changed(c=TENSORS["c"].half()), r"c is float16\[2, 3\], published float32\[2, 3\]"),
    ],
)
def test_each_difference_is_named(loaded: WeightManifest, complaint: str) -> None:
    with pytest.raises(WeightSyncError, match=complaint):
        verify_loaded(manifest_of(3, TENSORS), loaded)


def test_many_differences_are_counted_and_the_first_are_named() -> None:
    loaded = manifest_of(3, {name: tensor + 1 for name, tensor in TENSORS.items()})
    with pytest.raises(WeightSyncError, match=r"6 different: a .*b .*c .*, …\)$"):
        verify_loaded(manifest_of(3, TENSORS), loaded)
