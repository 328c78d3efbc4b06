"""Weights through memory that learner and engines share: who finds it, who keeps it, and when it is gone."""

import gc
import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ral_system.errors import WeightSyncError, WeightTransferError
from ral_system.weights.manifest import verify_loaded
from ral_system.weights.transfer import shared_memory
from ral_system.weights.transfer.buckets import buckets
from ral_system.weights.transfer.shared_memory import SharedMemory
from ral_system.weights.transfer.transfer import Setting, Transfer
from tests.offered import manifest_of, stream
from tests.unit.weights.exchange import Model, Run


def test_memory_of_something_else_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"secret")
    with (tmp_path / "file").open() as file:
        for handle in (str(tmp_path / "file"), f"/proc/{os.getpid()}/fd/{file.fileno()}", "/proc/1/../1/fd/3"):
            with pytest.raises(
                RuntimeError, match="is not, or no longer, the learner's memory for weights; does another"
            ):
                shared_memory._open(handle)


def test_memory_of_a_gpu_is_opened_where_this_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner sees its GPU as the first; an engine of two ranks sees two, and its second rank is on the other."""
    opened: list[tuple[object, ...]] = []

    def new_shared(*arguments: object) -> None:
        opened.append(arguments)
        raise KeyboardInterrupt  # what follows needs a GPU

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared_cuda", new_shared)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        shared_memory._open([0, b"ipc".hex(), 64, 0, b"counter".hex(), 8, b"event".hex(), True])
    assert opened == [(1, b"ipc", 64, 0, b"counter", 8, b"event", True)]


def test_memory_of_another_node_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, state = Run(SharedMemory, tmp_path, engines=1, timeout_s=2.0), Model().state_dict()
    nodes = iter(["here", "there"])
    monkeypatch.setattr(shared_memory, "this_node", lambda: next(nodes))
    offer = run.learner.offer(manifest_of(1, state), tuple(state), stream(state))
    with pytest.raises(WeightSyncError, match=r"memory for weights is not on this node; set rollout.weight_transfer=b"):
        run.exchange(offer, stream(state), [Model()])


def test_memory_that_its_process_has_given_up_can_be_sent_again() -> None:
    for path in ("/proc/4194304/fd/9", f"/proc/{os.getpid()}/fd/999999"):
        with pytest.raises(RuntimeError, match=r"the other process has ended, or given up"):
            shared_memory._open(path)


@pytest.mark.parametrize("kept", [True, False])  # as on a CPU, and on a GPU
def test_an_engine_in_the_place_of_another_gets_a_new_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    monkeypatch.setattr(shared_memory, "kept", lambda memory: memory if kept else memory.new_empty(0))
    run, state = Run(SharedMemory, tmp_path, timeout_s=2.0), Model().state_dict()
    for version in (1, 2):
        manifest = manifest_of(version, state)
        models = [Model(seed=1), Model(seed=2)]
        try:
            run.exchange(run.learner.offer(manifest, tuple(state), stream(state)), stream(state), models)
        except WeightTransferError:
            assert version == 2
            again = run.learner.offer(manifest, tuple(state), stream(state))
            for found in run.exchange(again, stream(state), models):
                verify_loaded(manifest, found)
        else:
            assert version == 1
        run.engines[0] = SharedMemory(replace(run.engines[0]._setting, rank=0))  # type: ignore[attr-defined]


def test_a_line_that_lives_until_its_process_ends_says_nothing(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.offered import manifest_of, stream
from tests.unit.weights.exchange import Model, Run, SharedMemory
run, state = Run(SharedMemory, Path({str(tmp_path)!r})), Model().state_dict()
run.exchange(run.learner.offer(manifest_of(1, state), tuple(state), stream(state)), stream(state), [Model(), Model()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_shared_memory_is_gone_with_its_transfer(tmp_path: Path) -> None:
    before = open_files()
    run, state = Run(SharedMemory, tmp_path, timeout_s=1.0), Model().state_dict()
    offer = run.learner.offer(manifest_of(1, state), tuple(state), stream(state))
    with pytest.raises(WeightTransferError):
        run.learner.send(offer, stream(state))  # and nobody listens
    del run
    gc.collect()
    assert open_files() <= before


def test_an_engine_has_dropped_the_memory_when_the_sender_may_give_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU. A bucket for each row, so the last tensor and its buffer would be the ones that stay."""
    monkeypatch.setattr(SharedMemory, "bucket_bytes", lambda _: 1)
    monkeypatch.setattr(shared_memory, "kept", lambda memory: memory.new_empty(0))
    opened: list[weakref.ref[torch.UntypedStorage]] = []
    alive: list[int] = []
    first, waited = shared_memory._open, shared_memory.SharedLine._wait_for_receivers

    def watched_open(handle: object) -> Tensor:
        memory = first(handle)
        opened.append(weakref.ref(memory.untyped_storage()))
        return memory

    def watched_wait(line: shared_memory.SharedLine, index: int) -> None:
        waited(line, index)
        if index == last:
            alive.append(sum(ref() is not None for ref in opened))

    monkeypatch.setattr(shared_memory, "_open", watched_open)
    monkeypatch.setattr(shared_memory.SharedLine, "_wait_for_receivers", watched_wait)
    run, state = Run(SharedMemory, tmp_path, engines=1), Model().state_dict()
    manifest = manifest_of(1, state)
    last = len(buckets(manifest, tuple(state), 1)) - 1
    offer = run.learner.offer(manifest, tuple(state), stream(state))
    gc.disable()  # what only a cycle keeps is alive
    try:
        (found,) = run.exchange(offer, stream(state), [Model(seed=1)])
    finally:
        gc.enable()
    verify_loaded(manifest, found)
    assert opened and alive == [0]


def open_files() -> int:
    return sum(
        "memfd:ral_weights" in str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()
    )


def copied(engine: Transfer[Any], offer: Any) -> dict[str, Tensor]:
    return {piece.name: piece.tensor.clone() for piece in engine.receive(offer)}


def test_each_rank_serves_the_engine_beside_it(tmp_path: Path) -> None:
    setting = Setting(tmp_path, 1, 0, receivers=2, senders=2, host="127.0.0.1", timeout_s=20.0)
    ranks = [SharedMemory(replace(setting, rank=rank)) for rank in range(2)]
    engines = [SharedMemory(replace(setting, rank=rank)) for rank in range(2)]
    for version in (1, 2):
        states = [Model(seed=version + 10 * rank).state_dict() for rank in range(2)]  # to tell the ranks apart
        manifest = manifest_of(version, states[0])
        offer = ranks[0].offer(manifest, tuple(states[0]), stream(states[0]))
        assert ranks[1].offer(manifest, tuple(states[0]), stream(states[1])) is None and offer is not None
        with ThreadPoolExecutor(4) as threads:
            sends = [threads.submit(rank.send, offer, stream(s)) for rank, s in zip(ranks, states, strict=True)]
            loads = [threads.submit(copied, engine, offer) for engine in engines]
            found = [load.result(30) for load in loads]
            assert [send.result(30) for send in sends] == [None, None]
        assert all(torch.equal(f[name], s[name]) for f, s in zip(found, states, strict=True) for name in s)
