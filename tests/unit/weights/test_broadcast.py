"""The group of a broadcast: after a failure it is given up, and the next offer makes another."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

from ral_system.errors import WeightTransferError
from ral_system.weights.transfer import broadcast
from ral_system.weights.transfer.broadcast import Broadcast, BroadcastLine
from ral_system.weights.transfer.buckets import buckets
from ral_system.weights.transfer.transfer import Setting
from tests.offered import manifest_of, stream

STATE = {"a": torch.ones(3)}


class Group:
    """A process group of one rank that does nothing, or fails when it is waited for."""

    def __init__(self) -> None:
        self.fails, self.ends, self.aborted, self.sent = False, True, 0, 0

    def broadcast(self, tensors: list[Tensor], options: Any) -> Any:
        assert not self.aborted
        return SimpleNamespace(wait=self.wait)

    def wait(self, timeout: timedelta) -> None:
        if self.fails:
            raise RuntimeError("NCCL error: remote process exited.\nLast error: …")
        self.sent += 1

    def abort(self) -> None:
        self.aborted += 1
        if not self.ends:
            raise RuntimeError("abort did not end in time")


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[Group]:
    made: list[Group] = []

    def make(*_: Any) -> Group:
        made.append(Group())
        return made[-1]

    monkeypatch.setattr(broadcast, "_gloo", make)
    return made


WEIGHTS = stream(STATE)


def test_a_group_that_fails_is_aborted_and_the_next_offer_makes_another(groups: list[Group], tmp_path: Path) -> None:
    learner = Broadcast(Setting.of_one_process(tmp_path))

    def publish(version: int) -> None:
        offer = learner.offer(manifest_of(version, STATE), tuple(STATE), WEIGHTS)
        assert offer is not None
        learner.send(offer, WEIGHTS)

    publish(1)
    publish(2)
    assert [(group.sent, group.aborted) for group in groups] == [(2, 0)]  # it serves version after version
    groups[0].fails = True
    with pytest.raises(WeightTransferError, match=r"^weights 3 were not sent: NCCL error: remote process exited \("):
        publish(3)
    assert groups[0].aborted == 1
    publish(3)  # again, as Publisher does
    publish(3)
    assert [(group.sent, group.aborted) for group in groups] == [(2, 1), (1, 1), (1, 0)]


def test_a_group_that_cannot_be_aborted_leaves_the_first_error_and_another_is_made(
    groups: list[Group], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    learner, manifest = Broadcast(Setting.of_one_process(tmp_path)), manifest_of(1, STATE)
    offer = learner.offer(manifest, tuple(STATE), WEIGHTS)
    assert offer is not None
    learner.send(offer, WEIGHTS)
    groups[0].fails, groups[0].ends = True, False
    with pytest.raises(WeightTransferError, match=r"^weights 1 were not sent: NCCL error: remote process exited \("):
        learner.send(offer, WEIGHTS)
    assert "a connection for weights could not be closed: abort did not end in time" in capfd.readouterr().err
    again = learner.offer(manifest, tuple(STATE), WEIGHTS)
    assert again is not None
    learner.send(again, WEIGHTS)
    assert [(group.sent, group.aborted) for group in groups] == [(1, 1), (1, 0)]


def test_an_engine_gives_its_group_up_when_an_offer_has_another_meeting(groups: list[Group], tmp_path: Path) -> None:
    setting = Setting.of_one_process(tmp_path)
    learner, engine, manifest = Broadcast(setting), Broadcast(setting), manifest_of(1, STATE)
    for _ in range(2):  # offered twice: a new meeting
        offer = learner.offer(manifest, tuple(STATE), WEIGHTS)
        assert offer is not None
        assert [piece.name for piece in engine.receive(offer)] == ["a"]
    assert [group.aborted for group in groups] == [1, 0]


class NcclGroup:
    """What PyTorch without CUDA lacks. It notes what it was made with."""

    Options = SimpleNamespace

    def __init__(self, store: Any, rank: int, size: int, options: Any) -> None:
        self.environment = os.environ.get("TORCH_NCCL_BLOCKING_WAIT")
        self.made_for, self.timeout = (rank, size), options._timeout


@pytest.mark.parametrize("before", [None, "0"])
def test_a_group_of_nccl_raises_instead_of_ending_the_process(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_NCCL_BLOCKING_WAIT", raising=False)
    if before is not None:
        monkeypatch.setenv("TORCH_NCCL_BLOCKING_WAIT", before)
    monkeypatch.setattr(dist, "ProcessGroupNCCL", NcclGroup, raising=False)
    store, timeout = HashStore(), timedelta(seconds=5)
    store.set("here/1", "")
    group = broadcast._nccl(store, 0, 2, timeout)
    assert (group.environment, group.made_for, group.timeout) == ("1", (0, 2), timeout)
    assert os.environ.get("TORCH_NCCL_BLOCKING_WAIT") == before  # other groups of the process are as before


def test_nccl_does_not_connect_before_every_rank_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "ProcessGroupNCCL", None, raising=False)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?i)time"):
        broadcast._nccl(HashStore(), 0, 2, timedelta(seconds=0.5))
    assert 0.4 < time.monotonic() - began < 5


def test_gloo_gives_a_peer_that_died_before_it_connected_up_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "_own_address", lambda host: host)
    store = HashStore()
    store.set("here/0", "")
    with pytest.raises(RuntimeError, match="Wait timeout"):  # and leaves its address, where nobody listens any more
        broadcast._gloo(store, 1, 2, timedelta(seconds=0.5), "127.0.0.9")
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="Connect timeout"):  # the lower address connects
        broadcast._gloo(store, 0, 2, timedelta(seconds=2), "127.0.0.1")
    assert 1.5 < time.monotonic() - began < 8


def test_gloo_waits_for_a_late_peer_as_long_as_for_weights() -> None:
    store, setting = HashStore(), Setting(Path(), 1, 0, receivers=1, senders=1, host="127.0.0.1", timeout_s=2.0)
    sent = torch.arange(8, dtype=torch.uint8)
    (bucket,) = dealt = buckets(manifest_of(1, {"a": sent}), ["a"], 8)
    with ThreadPoolExecutor(2) as threads:
        sender = threads.submit(BroadcastLine, store, 0, setting)
        time.sleep(0.8)  # longer than a fifth of the bound
        receiver = threads.submit(BroadcastLine, store, 1, setting).result(10)
        taken = threads.submit(next, receiver.take(dealt))
        time.sleep(0.8)
        line = sender.result(10)
        line.begin(dealt)
        line.buffer(bucket).copy_(sent)
        line.give(bucket)
        assert torch.equal(taken.result(10), sent)
