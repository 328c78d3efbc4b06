from dataclasses import replace

import numpy as np
import pytest
import torch

from ral_system.errors import WeightSyncError
from ral_system.types import WeightManifest
from ral_system.weights.manifest import build_manifest, build_weights, digest_array, from_host, to_host, verify_loaded

ARRAYS = {name: np.arange(6, dtype=np.float32).reshape(2, 3) + i for i, name in enumerate("abcdef")}


def changed(**tensors: np.ndarray) -> WeightManifest:
    return build_manifest(3, {**ARRAYS, **tensors})


def test_equal_weights_pass() -> None:
    verify_loaded(build_manifest(3, ARRAYS), build_manifest(3, {k: v.copy() for k, v in reversed(ARRAYS.items())}))


def test_digest_is_of_values_not_of_memory_layout() -> None:
    fortran = np.asfortranarray(ARRAYS["a"])
    assert digest_array(fortran) == digest_array(ARRAYS["a"])
    assert digest_array(ARRAYS["a"].T).sha256 != digest_array(ARRAYS["a"]).sha256
    assert digest_array(np.float32(1.5).reshape(())).shape == ()


@pytest.mark.parametrize(
    ("loaded", "complaint"),
    [
        (build_manifest(2, ARRAYS), "version 2 instead of 3"),
        (build_manifest(3, {k: v for k, v in ARRAYS.items() if k != "b"}), "1 missing: b"),
        (changed(z=np.zeros(1)), "1 unexpected: z"),
        (changed(c=ARRAYS["c"] + np.float32(1e-6)), r"1 different: c \(sha256 \w{8}…, published \w{8}…\)"),
        (changed(c=ARRAYS["c"].reshape(3, 2)), r"c is float32\[3, 2\], published float32\[2, 3\]"),
        (changed(c=ARRAYS["c"].astype(np.float16)), r"c is float16\[2, 3\], published float32\[2, 3\]"),
    ],
)
def test_each_difference_is_named(loaded: WeightManifest, complaint: str) -> None:
    with pytest.raises(WeightSyncError, match=complaint):
        verify_loaded(build_manifest(3, ARRAYS), loaded)


def test_many_differences_are_counted_and_the_first_are_named() -> None:
    loaded = build_manifest(3, {name: array + 1 for name, array in ARRAYS.items()})
    with pytest.raises(WeightSyncError, match=r"6 different: a .*b .*c .*, …\)$"):
        verify_loaded(build_manifest(3, ARRAYS), loaded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_host_arrays_round_trip(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(dtype).T
    array, name = to_host(tensor)
    assert name == str(dtype).removeprefix("torch.")
    array.flags.writeable = False
    back = from_host(array, name)
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_bfloat16_is_in_the_manifest_and_travels_as_bits() -> None:
    weights = build_weights(1, {"w": torch.tensor([1.0, -2.5], dtype=torch.bfloat16)})
    assert weights.arrays["w"].dtype == np.uint16
    assert weights.manifest.tensors["w"].dtype == "bfloat16"
    as_uint16 = replace(weights.manifest.tensors["w"], dtype="uint16")
    with pytest.raises(WeightSyncError, match=r"w is uint16\[2\], published bfloat16\[2\]"):
        verify_loaded(weights.manifest, WeightManifest(1, {"w": as_uint16}))


def test_a_wrong_dtype_name_is_refused() -> None:
    with pytest.raises(WeightSyncError, match="float32 cannot be a tensor of float16"):
        from_host(np.zeros(2, np.float32), "float16")


def test_published_arrays_do_not_follow_training() -> None:
    tensor = torch.zeros(3)
    weights = build_weights(0, {"w": tensor})
    tensor += 1
    assert weights.arrays["w"].tolist() == [0, 0, 0]
