"""A supervised stage ends with the model that was best at its evaluations, also after a kill."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from rich.console import Console

from ral_system.config.commands import TrainConfig
from ral_system.controller import supervised
from ral_system.observability.progress import PhaseTimer, StageProgress
from ral_system.runs.folder import RunFolder
from ral_system.types import Prompt, Sample, TrainPlan

SETTINGS = ("sft.batch=1", "sft.max_steps=9", "sft.evaluate_every=2", "sft.evaluate_from=2")
SCORES = {2: 0.3, 4: 0.7, 6: 0.7, 8: 0.5, 9: 0.6}


class KilledError(Exception):
    pass


class Learner:
    """Its weights are the number of its updates."""

    shards, weights, under_way, most_under_way = 1, 0, 0, 0

    def __init__(self, killed_at: int | None = None) -> None:
        self.killed_at = killed_at

    def fit(self, plan: TrainPlan, index: int) -> Callable[[], Mapping[str, float]]:
        """Change the weights at once: a stage that saves with an update under way saves weights that are too new."""
        if self.weights == self.killed_at:

            def killed() -> Mapping[str, float]:
                raise KilledError

            return killed
        self.weights += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

        def answer() -> Mapping[str, float]:
            self.under_way -= 1
            return {"supervised/loss": 1.0}

        return answer

    def save(self, folder: Path) -> None:
        assert not self.under_way
        folder.mkdir(exist_ok=True)
        (folder / "weights").write_text(str(self.weights))

    save_model = save

    def load(self, folder: Path) -> None:
        self.weights = int((folder / "weights").read_text())


@pytest.fixture
def run_sft(
    make_config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunFolder]:
    monkeypatch.setattr(supervised, "_held_out_accuracy", lambda context, step: (SCORES[step], {}))
    sample = Sample("s", Prompt("s", "", "?", "", (), (1,)), (2,))

    said = io.StringIO()

    def run(*overrides: str, killed_at: int | None = None, learner: Learner | None = None) -> RunFolder:
        context: Any = SimpleNamespace(
            config=make_config(*SETTINGS, "checkpoint.supervised_every=4", *overrides),
            compares=False,
            folder=RunFolder(tmp_path),
            origin=lambda: "model",
            prompts=SimpleNamespace(demonstration=lambda *which, **seed: sample),
            roles=SimpleNamespace(learner=learner or Learner(killed_at)),
            residency=MagicMock(),
            metrics=MagicMock(lines=0),
            log=MagicMock(),
            rollouts=MagicMock(lines=0),
            timer=PhaseTimer(),
            progress=StageProgress("sft", 9, console=Console(file=said, width=200)),
        )
        supervised.run_supervised(context, "sft")
        (tmp_path / "said").write_text(said.getvalue())
        return context.folder

    return run


def model_and_result(folder: RunFolder) -> tuple[str, Any, Any]:
    result = folder.result("sft")
    assert result is not None
    return (folder.model("sft") / "weights").read_text(), result["best_step"], result["held_out_score"]


def kept(folder: RunFolder) -> list[str]:
    return sorted(f.name for f in (folder.checkpoints / "sft").iterdir())


def test_of_the_best_evaluations_the_last_one_s_model_is_the_result(run_sft: Callable[..., RunFolder]) -> None:
    folder = run_sft()
    assert model_and_result(folder) == ("6", 6, 0.7)
    assert kept(folder) == ["best_000006", "step_000008", "step_000009"]
    said = (folder.root / "said").read_text()
    assert "cold start: keeps the model of step 6, whose held-out score 0.700 is the highest" in said


def test_an_update_waits_at_the_learner_while_the_one_before_is_made(run_sft: Callable[..., RunFolder]) -> None:
    learner = Learner()
    run_sft("sft.evaluate_from=9", learner=learner)
    assert (learner.weights, learner.under_way, learner.most_under_way) == (9, 0, 2)


def test_a_stage_that_is_good_enough_ends_with_that_model(run_sft: Callable[..., RunFolder]) -> None:
    assert model_and_result(run_sft("sft.stop_at=0.7")) == ("4", 4, 0.7)


def test_a_stage_killed_before_its_first_evaluation_may_end_there(run_sft: Callable[..., RunFolder]) -> None:
    late = ("sft.evaluate_from=6", "checkpoint.supervised_every=2")
    with pytest.raises(KilledError):
        run_sft(*late, killed_at=4)
    assert model_and_result(run_sft(*late, "sft.max_steps=4")) == ("4", 4, 0.7)


@pytest.mark.parametrize("killed_at", [1, 3, 5, 6, 7, 8])
def test_a_kill_changes_nothing(run_sft: Callable[..., RunFolder], killed_at: int) -> None:
    with pytest.raises(KilledError):
        run_sft(killed_at=killed_at)
    folder = run_sft()
    assert model_and_result(folder) == ("6", 6, 0.7)
    assert kept(folder) == ["best_000006", "step_000008", "step_000009"]


def test_more_steps_keep_the_best_until_there_is_a_better_one(
    run_sft: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sft()
    monkeypatch.setattr(supervised, "_held_out_accuracy", lambda context, step: ({10: 0.6, 12: 0.6}.get(step, 0.9), {}))
    assert model_and_result(run_sft("sft.max_steps=12")) == ("6", 6, 0.7)
    assert model_and_result(run_sft("sft.max_steps=14", "sft.stop_at=0.8")) == ("14", 14, 0.9)
