"""A full GPU, as one line."""

from pathlib import Path

import pytest
import torch

from ral_system.actors.process import ActorProcess, watched
from ral_system.config.commands import TrainConfig
from ral_system.errors import SetupError
from ral_system.launch.mistakes import explain
from ral_system.planning.remedies import full_device

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB")


class Learner(ActorProcess):
    @watched
    def update(self, error: Exception) -> None:
        """Fail."""
        raise error


@pytest.fixture
def learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Learner:
    monkeypatch.setattr("ral_system.actors.process._redirect_output", lambda log: None)
    monkeypatch.setattr("ral_system.actors.process.faulthandler.enable", lambda file: None)
    return Learner("learner 2", tmp_path / "learner.log", 60.0)


def test_a_rank_whose_gpu_is_full_says_what_to_change(
    learner: Learner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda wait, file: None)
    with pytest.raises(SetupError) as refused:
        learner.update(FULL)
    line = str(refused.value)
    assert line.startswith(
        "learner 2: its GPU is full (it could not allocate 2.50 GiB); lower learner.max_tokens, set learner"
    )
    assert line.endswith("; ral-plan prints what each role holds") and "\n" not in line
    assert "CUDA out of memory" in capsys.readouterr().err  # the log has all of it
    with pytest.raises(RuntimeError, match="shapes"):
        learner.update(RuntimeError("shapes"))


def test_every_role_has_a_remedy_of_its_own_and_one_process_the_learners() -> None:
    lines = [str(full_device(FULL, f"{role} 0")) for role in ("learner", "rollout", "reference", "teacher")]
    assert len({line.partition("; ")[2] for line in lines}) == 4
    assert "lower rollout.gpu_memory_utilization" in lines[1]
    local = explain(FULL, TrainConfig)
    assert isinstance(local, SetupError) and str(local).startswith(
        "this process: its GPU is full (it could not allocate"
    )
    assert "lower learner.max_tokens" in str(local)
    assert explain(MemoryError("CUDA out of memory"), TrainConfig) is None
