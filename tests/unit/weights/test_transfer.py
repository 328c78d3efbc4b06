"""Ways for weights to travel: what arrives is what was offered, whichever way, and what is damaged is found."""

import socket
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ral_system.errors import ConfigError, WeightSyncError, WeightTransferError
from ral_system.registry import WEIGHT_TRANSFERS
from ral_system.types import WeightManifest
from ral_system.weights.engine_memory import EngineMemory
from ral_system.weights.manifest import verify_loaded
from ral_system.weights.transfer.broadcast import Broadcast
from ral_system.weights.transfer.files import Files
from ral_system.weights.transfer.object_store import ObjectStore, from_host, to_host
from ral_system.weights.transfer.opening import choose_transfer
from ral_system.weights.transfer.shared_memory import SharedMemory
from ral_system.weights.transfer.streamed import Streamed
from ral_system.weights.transfer.transfer import Piece, Setting, Transfer
from tests.offered import manifest_of, stream
from tests.unit.weights.exchange import STREAMED, Model, Run


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


@pytest.mark.parametrize("kind", STREAMED)
def test_tensors_without_elements_travel(kind: type[Streamed[Any]], tmp_path: Path) -> None:
    run, state = Run(kind, tmp_path), {"empty": torch.zeros(0, 3)}
    for version in (1, 2):
        manifest = manifest_of(version, state)
        offer = run.learner.offer(manifest, tuple(state), stream(state))
        engines = [nn.ParameterDict({"empty": torch.zeros(0, 3)}) for _ in range(2)]
        for found in run.exchange(offer, stream(state), engines):
            verify_loaded(manifest, found)


@pytest.mark.parametrize("kind", STREAMED)
def test_the_store_of_a_run_does_not_grow(kind: type[Streamed[Any]], tmp_path: Path) -> None:
    run, state, keys = Run(kind, tmp_path), Model().state_dict(), []
    for version in range(4):
        offer = run.learner.offer(manifest_of(version, state), tuple(state), stream(state))
        run.exchange(offer, stream(state), [Model(), Model()])
        keys.append((offer.meeting.port, run.learner._store.num_keys()))
    assert len(set(keys)) == 1


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
