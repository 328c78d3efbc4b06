"""Weights between two processes on one GPU through CUDA IPC, NCCL of one rank, and how fast checksums are."""

import multiprocessing as mp
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

from ral_system.types import WeightManifest
from ral_system.weights.digest import digest
from ral_system.weights.transfer.broadcast import _nccl
from ral_system.weights.transfer.buckets import BUCKET_BYTES, memory_of
from ral_system.weights.transfer.shared_memory import SharedMemory
from ral_system.weights.transfer.transfer import Setting
from tests.gpu.devices import GPU
from tests.gpu.rows import row
from tests.offered import manifest_of, stream

pytestmark = GPU

VERSIONS = 4
SHAPES = {"embed": (152_064, 3584), **{f"layer.{i}": (18_944, 3584) for i in range(12)}, "norm": (3584,)}
"""3 GB in bfloat16."""


def weights(version: int) -> dict[str, Tensor]:
    torch.manual_seed(version)
    return {name: torch.randn(shape, device="cuda", dtype=torch.bfloat16) for name, shape in SHAPES.items()}


def free() -> int:
    """Bytes of the GPU that nobody has, when this process keeps no more than it uses, like a learner that leaves it."""
    torch.cuda.synchronize()
    torch.cuda.ipc_collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def load(own: dict[str, Tensor], offer: Any, transfer: SharedMemory) -> None:
    for name, tensor, first in transfer.receive(offer):
        own[name][first : first + len(tensor)].copy_(tensor)


def engine(offers: Any, answers: Any, setting: Setting) -> None:
    """A stand-in: it has the weights' memory, and says what it holds at first and after each version."""
    own, transfer = weights(-1), SharedMemory(setting)
    held = manifest_of(-1, own)
    while True:
        free()
        answers.put(held)
        if (offer := offers.get()) is None:
            return
        load(own, offer, transfer)
        held = manifest_of(offer.manifest.version, own)


def publish(learner: SharedMemory, version: int, offers: Any) -> tuple[WeightManifest, float]:
    """Send new weights; return what they are, and how many seconds it took."""
    state = weights(version)
    manifest = manifest_of(version, state)
    began = time.perf_counter()
    offer = learner.offer(manifest, tuple(state), stream(state))
    assert offer is not None
    offers.put(offer)
    learner.send(offer, stream(state))
    return manifest, time.perf_counter() - began


def test_an_engine_on_the_same_gpu_holds_every_version_and_no_more(tmp_path: Path) -> None:
    """The free memory of the GPU counts what either process keeps, mappings of the other's included."""
    setting, context = Setting(tmp_path, 1, 0, 1, 1, "127.0.0.1", 60.0), mp.get_context("spawn")
    offers, answers = context.Queue(), context.Queue()
    process = context.Process(target=engine, args=(offers, answers, setting), daemon=True)
    process.start()
    state = weights(-1)
    sizes = [tensor.nbytes for tensor in state.values()]
    assert answers.get(timeout=60) == manifest_of(-1, state)  # kernels of both processes are loaded
    del state
    learner, left, reserved, seconds = SharedMemory(replace(setting, rank=0)), [free()], [], []
    reserved.append(torch.cuda.memory_reserved())
    for version in range(VERSIONS):
        manifest, took = publish(learner, version, offers)
        assert answers.get(timeout=60) == manifest
        seconds.append(took)
        left.append(free())
        reserved.append(torch.cuda.memory_reserved())
    offers.put(None)
    process.join(30)
    size = sum(sizes)
    row(f"{size / 1e9:.2f} GB by CUDA IPC", f"{min(seconds):.3f} s", f"{size / min(seconds) / 1e9:.0f} GB/s")
    row("free before and after each version", *(f"{amount / 2**30:.2f} GiB" for amount in left))
    row("reserved by the sender", *(f"{amount / 2**30:.2f} GiB" for amount in reserved))
    one_buffer = memory_of([(shape, torch.bfloat16) for shape in SHAPES.values()], BUCKET_BYTES)
    assert left[0] - min(left) < one_buffer / 4
    assert max(reserved) - reserved[0] < one_buffer / 4


def test_checksums_are_bound_by_memory() -> None:
    state = weights(0)
    size = sum(tensor.nbytes for tensor in state.values())
    copies = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    seconds = {}
    for what, run in (
        ("copy", lambda: [copies[name].copy_(tensor) for name, tensor in state.items()]),
        ("checksums", lambda: [digest(tensor) for tensor in state.values()]),
    ):
        run()
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds[what] = time.perf_counter() - began
    for what, took in seconds.items():
        row(f"{what} of {size / 1e9:.2f} GB", f"{took * 1e3:.1f} ms", f"{size / took / 1e9:.0f} GB/s")
    assert digest(state["norm"]) == digest(state["norm"].cpu())
    assert digest(state["embed"][:999]) == digest(state["embed"][:999].cpu())


def broadcast(group: Any, timeout_s: float) -> None:
    """Send to nobody; the bytes stay as they are."""
    buffer = torch.arange(1 << 20, device="cuda").to(torch.uint8)
    options = torch.distributed.BroadcastOptions()
    options.rootRank, before = 0, buffer.clone()
    group.broadcast([buffer], options).wait(timedelta(seconds=timeout_s))
    assert torch.equal(buffer, before)


def test_nccl_of_one_rank_broadcasts() -> None:
    broadcast(_nccl(HashStore(), 0, 1, timedelta(seconds=30)), 30)


def fail_and_connect_again() -> None:
    """Wait too long, for a rank that is not there and for a broadcast behind other work; then broadcast once more."""
    with pytest.raises(RuntimeError, match=r"(?i)time"):
        _nccl(HashStore(), 0, 2, timedelta(seconds=1))
    group = _nccl(HashStore(), 0, 1, timedelta(seconds=30))
    broadcast(group, 30)
    torch.cuda._sleep(8_000_000_000)  # cycles: about 4 s
    with pytest.raises(RuntimeError, match=r"(?i)timeout"):
        broadcast(group, 0.5)
    group.abort()
    del group
    time.sleep(2)  # a watchdog looks every 0.1 s
    torch.cuda.synchronize()
    broadcast(_nccl(HashStore(), 0, 1, timedelta(seconds=30)), 30)


def test_a_process_outlives_a_failed_group_of_nccl() -> None:
    process = mp.get_context("spawn").Process(target=fail_and_connect_again, daemon=True)
    process.start()
    process.join(90)
    assert process.exitcode == 0
