"""Ways for weights to travel: what arrives is what was offered, whichever way, and what is damaged is found."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ral_system.errors import ConfigError, WeightSyncError
from ral_system.registry import WEIGHT_TRANSFERS
from ral_system.weights.held import ParameterReader, held_manifest, received_manifest
from ral_system.weights.manifest import verify_loaded
from ral_system.weights.transfer.files import Files
from ral_system.weights.transfer.opening import open_transfer
from ral_system.weights.transfer.transfer import Transfer


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 3, dtype=dtype), nn.Linear(3, 2, bias=False, dtype=dtype)


@pytest.fixture(params=["object_store", "files"])
def transfer(request: pytest.FixtureRequest, tmp_path: Path) -> Transfer[Any]:
    return WEIGHT_TRANSFERS.get(request.param)(tmp_path / "weights", 1)


def arrived(transfer: Transfer[Any], offer: Any) -> Any:
    return transfer.receive(pickle.loads(pickle.dumps(offer)))  # noqa: S301 (as between two processes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine_dtype", [torch.float32, torch.bfloat16])
def test_what_arrives_is_what_was_offered(
    transfer: Transfer[Any], dtype: torch.dtype, engine_dtype: torch.dtype
) -> None:
    learner, engine = Model(dtype), Model(engine_dtype)
    nn.init.zeros_(engine.first.weight)
    offer = transfer.offer(3, learner.state_dict)
    with torch.no_grad():
        learner.first.weight.add_(1)  # training goes on
    received = arrived(transfer, offer)
    state = engine.state_dict()
    for name, tensor in received.tensors():
        assert tensor.dtype == dtype
        state[name].copy_(tensor)
    assert torch.equal(engine.first.weight.float(), Model(dtype).first.weight.to(engine_dtype).float())
    verify_loaded(offer.manifest, held_manifest(ParameterReader(engine), received))
    assert received_manifest(received) == offer.manifest
    state["first.bias"][1] += 1
    with pytest.raises(WeightSyncError, match=r"1 different: first.bias"):
        verify_loaded(offer.manifest, held_manifest(ParameterReader(engine), received))


def test_both_ways_publish_the_same_identity(tmp_path: Path) -> None:
    state = Model(torch.bfloat16).state_dict
    first, second = (WEIGHT_TRANSFERS.get(name)(tmp_path, 1).offer(1, state) for name in ("object_store", "files"))
    assert first.manifest == second.manifest


def test_ranks_without_the_state_offer_nothing(transfer: Transfer[Any]) -> None:
    assert transfer.offer(1, lambda: None) is None


def test_files_that_nobody_waits_for_are_removed(tmp_path: Path) -> None:
    transfer = Files(tmp_path, waiting=2)
    (tmp_path / "99.safetensors").touch()  # an interrupted run's
    for version in range(6):
        transfer.offer(version, Model().state_dict)
    assert sorted(int(file.stem) for file in tmp_path.iterdir()) == [3, 4, 5]


def test_a_file_that_is_gone_damaged_or_another_is_one_line(tmp_path: Path) -> None:
    transfer = Files(tmp_path)
    offer = transfer.offer(1, Model().state_dict)
    assert offer is not None
    whole = offer.path.read_bytes()
    offer.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightSyncError, match=r"^weights 1: .*1.safetensors cannot be read \(.*\); is the folder"):
        transfer.receive(offer)
    torch_file = transfer.offer(2, nn.Linear(2, 2).state_dict)
    assert torch_file is not None
    offer.path.write_bytes(torch_file.path.read_bytes())
    with pytest.raises(WeightSyncError, match=r"^weights 1: .* holds other tensors than published"):
        transfer.receive(offer)
    offer.path.unlink()
    with pytest.raises(WeightSyncError, match=r"cannot be read"):
        transfer.receive(offer)


class SendsAtOnce:
    keeps_offers = False

    def __init__(self, folder: Path, waiting: int) -> None:
        pass


def test_one_that_keeps_nothing_serves_no_run_that_generates_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WEIGHT_TRANSFERS, "get", lambda name: SendsAtOnce)
    assert not open_transfer("object_store", 0, tmp_path).keeps_offers
    with pytest.raises(ConfigError, match=r"^rollout.weight_transfer=object_store sends .*staleness=0 \(now 1\)"):
        open_transfer("object_store", 1, tmp_path)
