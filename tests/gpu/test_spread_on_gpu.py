"""A model whose layers lie on two devices, on real ones: two GPUs, or one and the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ral_system.config.commands import TrainConfig
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.types import Sample
from tests.unit.models.test_shared_prompts import Bench
from tests.unit.models.test_spread import assert_same, five_layers, passed

__all__ = ["five_layers"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_gpus_give_the_bits_of_one(
    five_layers: Path, media: MediaStore, make_config: Callable[..., TrainConfig], dtype: str
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    bench, before = Bench(five_layers, media), torch.cuda.memory_allocated(1)
    one = on(bench, ["cuda:0"], make_config(), dtype, bench.samples(seed=5))
    assert torch.cuda.memory_allocated(1) == before
    assert_same(on(bench, ["cuda:0", "cuda:1"], make_config(), dtype, bench.samples(seed=5)), one)


def test_a_gpu_and_the_cpu_give_the_numbers_of_the_cpu(
    five_layers: Path, media: MediaStore, make_config: Callable[..., TrainConfig]
) -> None:
    bench = Bench(five_layers, media)
    split, cpu = (
        on(bench, devices, make_config(), "float32", bench.samples(seed=5)) for devices in (["cuda:0", "cpu"], ["cpu"])
    )
    assert_same(split, cpu, most=1e-3)


def on(bench: Bench, devices: list[str], config: TrainConfig, dtype: Any, samples: tuple[Sample, ...]) -> list[Any]:
    """Pass samples through a model on these devices."""
    model = load_model(bench.folder, dtype=dtype, device=devices[0], others=[torch.device(d) for d in devices[1:]])
    policy = PolicyModel(model, load_family(bench.folder), temperature=0.7).eval().requires_grad_(False)
    policy.banned_token_ids = policy.banned_token_ids.to(devices[0])
    return passed(policy, bench, samples, config, home=devices[0])
