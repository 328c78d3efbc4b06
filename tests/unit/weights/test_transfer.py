"""Ways for weights to travel: what arrives is what was offered, whichever way, and what is damaged is found."""

import gc
import os
import pickle
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ral_system.errors import ConfigError, WeightSyncError, WeightTransferError
from ral_system.registry import WEIGHT_TRANSFERS
from ral_system.types import WeightManifest
from ral_system.weights.engine_memory import EngineMemory, held_manifest
from ral_system.weights.manifest import verify_loaded
from ral_system.weights.transfer import shared_memory
from ral_system.weights.transfer.broadcast import Broadcast
from ral_system.weights.transfer.buckets import buckets
from ral_system.weights.transfer.files import Files
from ral_system.weights.transfer.object_store import ObjectStore, from_host, to_host
from ral_system.weights.transfer.opening import choose_transfer
from ral_system.weights.transfer.shared_memory import SharedMemory
from ral_system.weights.transfer.streamed import Streamed
from ral_system.weights.transfer.transfer import Piece, Setting, Transfer, WeightStream
from tests.offered import manifest_of, stream

STREAMED = [Broadcast, SharedMemory]


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(5, 3, dtype=dtype), nn.Linear(3, 2, bias=False, dtype=dtype)


class Run:
    """A learner's rank, and engines with a model each, that exchange offers as processes do."""

    def __init__(self, kind: type[Transfer[Any]], folder: Path, engines: int = 2, timeout_s: float = 20.0) -> None:
        setting = Setting(folder / "weights", 1, 0, engines, 1, "127.0.0.1", timeout_s)
        self.learner = kind(setting)
        self.engines = [kind(replace(setting, rank=rank)) for rank in range(engines)]
        self.threads = ThreadPoolExecutor(engines + 1)
        self.damage: Callable[[str, Tensor], None] = lambda name, tensor: None

    def exchange(self, offer: Any, weights: WeightStream, models: Sequence[nn.Module]) -> list[WeightManifest]:
        sent = self.threads.submit(self.learner.send, offer, weights)
        loads = [self.threads.submit(self.load, *each) for each in zip(self.engines, models, [offer] * 9, strict=False)]
        found = [load.exception() or load.result() for load in loads]
        for failed in (*found, sent.exception()):
            if isinstance(failed, BaseException):
                raise failed
        return found  # type: ignore[return-value]

    def load(self, transfer: Transfer[Any], model: nn.Module, offer: Any) -> WeightManifest:
        offer, memory = pickle.loads(pickle.dumps(offer)), EngineMemory.same_names(model)  # noqa: S301
        held = memory.load(self.damaged(transfer.receive(offer)), offer.manifest.tensors)
        return held_manifest(offer.manifest, offer.names, [held])

    def damaged(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self.damage(piece.name, piece.tensor)
            yield piece
            del piece


@pytest.fixture(params=[ObjectStore, Files, *STREAMED])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    return Run(request.param, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_most", [1, 40, 1 << 20])  # bytes of a bucket: a row each, two, all
def test_what_arrives_is_what_was_offered(
    run: Run, dtype: torch.dtype, at_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Streamed, "bucket_bytes", lambda _: at_most)
    monkeypatch.setattr(SharedMemory, "bucket_bytes", lambda _: at_most)
    engines = [Model(seed=1), Model(torch.bfloat16, seed=2)]
    for version in (3, 4):
        learner = Model(dtype, seed=version)
        manifest, names = manifest_of(version, learner.state_dict()), ("first.weight", "second.weight")
        offer = run.learner.offer(manifest, names, stream(learner.state_dict()))
        bias = [engine.first.bias.clone() for engine in engines]
        expected = learner.first.weight.clone()
        if run.learner.keeps_offers:
            with torch.no_grad():
                learner.first.weight.add_(1)  # training goes on
        found = run.exchange(offer, stream(learner.state_dict()), engines)
        sent = WeightManifest(version, {name: manifest.tensors[name] for name in names})
        verify_loaded(sent, replace(found[0], tensors={n: found[0].tensors[n] for n in names}))
        assert torch.equal(engines[0].first.weight, expected.float())
        assert torch.equal(engines[1].first.weight, expected.to(torch.bfloat16))
        assert all(torch.equal(engine.first.bias, b) for engine, b in zip(engines, bias, strict=True))


@pytest.mark.parametrize("kind", [ObjectStore, Files, *STREAMED])
def test_a_bit_that_flips_on_the_way_is_found(kind: type[Transfer[Any]], tmp_path: Path) -> None:
    run, learner = Run(kind, tmp_path, engines=1), Model()
    manifest = manifest_of(1, learner.state_dict())

    def flip(name: str, tensor: Tensor) -> None:
        if name == "first.bias":
            tensor.view(torch.int32)[2] ^= 1 << 3

    run.damage = flip
    offer = run.learner.offer(manifest, tuple(manifest.tensors), stream(learner.state_dict()))
    (found,) = run.exchange(offer, stream(learner.state_dict()), [Model(seed=1)])
    with pytest.raises(WeightSyncError, match=r"1 different: first.bias"):
        verify_loaded(manifest, found)


def test_nothing_travels_when_nothing_is_new(run: Run) -> None:
    manifest = manifest_of(1, Model().state_dict())
    offer = run.learner.offer(manifest, (), stream({}))
    assert not any(found.tensors for found in run.exchange(offer, stream({}), [nn.Module(), nn.Module()]))


@pytest.mark.parametrize("kind", [ObjectStore, Files, *STREAMED])
def test_other_ranks_gather_and_offer_nothing(kind: type[Transfer[Any]], tmp_path: Path) -> None:
    state = Model().state_dict()
    taken: list[str] = []
    weights = stream(state, taken)
    setting = Setting.of_one_process(tmp_path, rank=1)
    other, manifest = kind(setting), manifest_of(1, state)
    assert other.offer(manifest, tuple(state), weights) is None
    if not kind.keeps_offers:
        offer = kind(replace(setting, rank=0)).offer(manifest, tuple(state), weights)
        other.send(offer, weights)
    assert taken == list(state)


@pytest.mark.parametrize("kind", STREAMED)
def test_a_wait_is_bounded_and_the_next_offer_connects_again(
    kind: type[Transfer[Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, state = Run(kind, tmp_path, timeout_s=1.0), Model().state_dict()
    engines, manifest = [Model(seed=1), Model(seed=2)], manifest_of(5, state)
    run.exchange(run.learner.offer(manifest, tuple(state), stream(state)), stream(state), engines)
    offer = run.learner.offer(manifest, tuple(state), stream(state))
    gathered: list[str] = []
    with pytest.raises(WeightTransferError, match=r"^weights 5 were not sent: .+ \(rollout.weight_timeout_s=1\)$"):
        run.learner.send(offer, stream(state, gathered))  # and nobody listens
    assert gathered == list(state)  # as the other ranks do
    assert "most recent call first" in capfd.readouterr().err
    with pytest.raises(WeightTransferError, match=r"^weights 5 were not received: .+ \(rollout.weight_timeout_s=1\)$"):
        run.load(run.engines[0], engines[0], offer)
    again = run.learner.offer(manifest, tuple(state), stream(state))
    assert again.meeting != offer.meeting
    for found in run.exchange(again, stream(state), engines):
        verify_loaded(manifest, found)


def test_a_sender_that_dies_half_way_is_noticed(tmp_path: Path) -> None:
    run, state = Run(Broadcast, tmp_path, engines=1, timeout_s=2.0), Model().state_dict()

    def breaks(names: Collection[str], at_most: int | None = None) -> Iterator[Piece]:
        yield Piece("first.weight", state["first.weight"])
        raise RuntimeError("a rank is gone")

    offer = run.learner.offer(manifest_of(1, state), tuple(state), breaks)
    with pytest.raises(WeightTransferError, match=r"weights 1 were not received: .* \(rollout.weight_timeout_s=2\)"):
        run.exchange(offer, breaks, [Model(seed=1)])


@pytest.mark.parametrize("kind", STREAMED)
def test_an_engine_that_fails_lets_the_sender_go_at_once(kind: type[Transfer[Any]], tmp_path: Path) -> None:
    run = Run(kind, tmp_path, engines=1, timeout_s=60.0)
    state = {f"w{i}": torch.zeros(1 << 20) for i in range(20)}  # more than the buffers hold

    memory = EngineMemory.same_names(nn.ParameterDict(state))
    memory._apart, memory._places = True, {**memory._places, "w1": None}  # type: ignore[dict-item]
    manifest = manifest_of(1, state)
    offer, began = run.learner.offer(manifest, tuple(state), stream(state)), time.monotonic()
    sent = run.threads.submit(run.learner.send, offer, stream(state))
    with pytest.raises(TypeError):
        memory.load(run.engines[0].receive(offer), manifest.tensors)
    with pytest.raises(WeightTransferError, match="weights 1 were not sent: "):
        sent.result(60)
    assert time.monotonic() - began < 30


def test_one_address_only_is_listened_on(tmp_path: Path) -> None:
    learner = Broadcast(Setting.of_one_process(tmp_path))
    offer = learner.offer(WeightManifest(1, {}), (), stream({}))
    assert offer is not None
    socket.create_connection(("127.0.0.1", offer.meeting.port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", offer.meeting.port), timeout=5)


def test_a_version_that_is_offered_twice_travels_over_a_new_connection(tmp_path: Path) -> None:
    run, state = Run(Broadcast, tmp_path), Model().state_dict()
    manifest, engines = manifest_of(1, state), [Model(seed=1), Model(seed=2)]
    first = run.learner.offer(manifest, tuple(state), stream(state))
    run.exchange(first, stream(state), engines)
    run.engines[1]._line = None  # type: ignore[attr-defined]  # as after a failure of this engine alone
    again = run.learner.offer(manifest, tuple(state), stream(state))
    assert again.meeting != first.meeting
    for found in run.exchange(again, stream(state), engines):
        verify_loaded(manifest, found)


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


@pytest.mark.parametrize("kind", STREAMED)
def test_tensors_without_elements_travel(kind: type[Streamed[Any]], tmp_path: Path) -> None:
    run, state = Run(kind, tmp_path), {"empty": torch.zeros(0, 3)}
    for version in (1, 2):
        manifest = manifest_of(version, state)
        offer = run.learner.offer(manifest, tuple(state), stream(state))
        engines = [nn.ParameterDict({"empty": torch.zeros(0, 3)}) for _ in range(2)]
        for found in run.exchange(offer, stream(state), engines):
            verify_loaded(manifest, found)


def test_a_line_that_lives_until_its_process_ends_says_nothing(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.offered import manifest_of, stream
from tests.unit.weights.test_transfer import Model, Run, SharedMemory
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


@pytest.mark.parametrize("kind", STREAMED)
def test_the_store_of_a_run_does_not_grow(kind: type[Streamed[Any]], tmp_path: Path) -> None:
    run, state, keys = Run(kind, tmp_path), Model().state_dict(), []
    for version in range(4):
        offer = run.learner.offer(manifest_of(version, state), tuple(state), stream(state))
        run.exchange(offer, stream(state), [Model(), Model()])
        keys.append((offer.meeting.port, run.learner._store.num_keys()))
    assert len(set(keys)) == 1


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


@pytest.mark.parametrize("kind", STREAMED)
def test_memory_is_kept_for_versions_that_fit_into_it(
    kind: type[Streamed[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "bucket_bytes", lambda _: 64)
    run, memory = Run(kind, tmp_path), []
    shapes = {"narrow": (50, 4), "short": (10, 4), "wide": (3, 200)}  # a wide row is larger than four buckets
    for version, names in enumerate([("narrow",), ("short", "narrow"), ("short",), ("wide", "narrow"), ("short",)]):
        state = {name: torch.full(shapes[name], float(version)) for name in names}
        engines = [nn.ParameterDict({name: torch.zeros(shapes[name]) for name in names}) for _ in range(2)]
        manifest = manifest_of(version, state)
        for found in run.exchange(run.learner.offer(manifest, names, stream(state)), stream(state), engines):
            verify_loaded(manifest, found)
        lines = [each._line for each in (run.learner, *run.engines)]  # type: ignore[attr-defined]
        memory.append([line._memory.untyped_storage() for line in lines])
    places = [[storage.data_ptr() for storage in storages] for storages in memory]
    assert places[0] == places[1] == places[2] and places[3] == places[4]
    assert all(map(int.__ne__, places[2], places[3]))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_host_arrays_round_trip(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(dtype).T
    array = to_host(tensor)
    array.flags.writeable = False
    back = from_host(array, str(dtype).removeprefix("torch."))
    assert back.dtype == dtype and torch.equal(back, tensor)


def test_files_that_nobody_waits_for_are_removed(tmp_path: Path) -> None:
    transfer, state = Files(Setting.of_one_process(tmp_path, waiting=2)), Model().state_dict()
    (tmp_path / "99.safetensors").touch()  # an interrupted run's
    for version in range(6):
        transfer.offer(manifest_of(version, state), tuple(state), stream(state))
    assert sorted(int(file.stem) for file in tmp_path.iterdir()) == [3, 4, 5]


def test_a_file_that_is_gone_damaged_or_another_is_one_line(tmp_path: Path) -> None:
    transfer, state = Files(Setting.of_one_process(tmp_path)), Model().state_dict()
    offer = transfer.offer(manifest_of(1, state), tuple(state), stream(state))
    assert offer is not None
    whole = offer.path.read_bytes()
    offer.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightSyncError, match=r"^weights 1: .*1.safetensors cannot be read \(.*\); is the folder"):
        list(transfer.receive(offer))
    other = nn.Linear(2, 2).state_dict()
    torch_file = transfer.offer(manifest_of(2, other), tuple(other), stream(other))
    assert torch_file is not None
    offer.path.write_bytes(torch_file.path.read_bytes())
    with pytest.raises(WeightSyncError, match=r"^weights 1: .* holds other tensors than published"):
        list(transfer.receive(offer))
    offer.path.unlink()
    with pytest.raises(WeightSyncError, match=r"cannot be read"):
        list(transfer.receive(offer))


def test_the_one_that_suits_the_run_is_chosen() -> None:
    assert choose_transfer(None, 0, one_process=False) is Broadcast
    assert choose_transfer(None, 1, one_process=False) is ObjectStore
    assert choose_transfer(None, 0, one_process=True) is ObjectStore
    assert choose_transfer("files", 1, one_process=False) is Files is WEIGHT_TRANSFERS.get("files")
    assert choose_transfer(None, 0, one_process=False, shares_memory=True) is SharedMemory
    with pytest.raises(ConfigError, match=r"^rollout.weight_transfer=broadcast: needs several processes, and cluster"):
        choose_transfer("broadcast", 0, one_process=True)
    with pytest.raises(ConfigError, match=r"^rollout.weight_transfer=broadcast sends .*staleness=0 \(now 1\)"):
        choose_transfer("broadcast", 1, one_process=False)
