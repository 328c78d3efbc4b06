"""Engines and learner are compared before the first stage with engines of a session, and only then."""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from rich.console import Console

from ral_system.config.choices import Stage, SupervisedStage
from ral_system.config.commands import TrainConfig
from ral_system.controller import rl, start, supervised
from ral_system.controller.residency import residency
from ral_system.controller.stage import StageContext
from ral_system.errors import LogProbError
from ral_system.observability.progress import PhaseTimer, StageProgress
from ral_system.runs.folder import RunFolder
from ral_system.types import UNREAD, Held, Prompt, Sample, Sampling, TensorDigest, TrainPlan, WeightManifest
from tests.composed import compose_config
from tests.unit.controller.fakes import Fakes, manifest, prompt, samples_of
from tests.unit.controller.test_contrast_line import Learner
from tests.unit.controller.test_residency import SharedFakes

SETTINGS = ("sft.batch=2", "sft.evaluate_from=9", "perceive.batch=2", "perceive.max_steps=2", "seed=5")


class Supervised(Fakes):
    """Roles of a cold start; the learner says when it trains."""

    def fit(self, plan: TrainPlan, index: int) -> Callable[[], Mapping[str, float]]:
        self.calls.append("fit")
        return lambda: {"supervised/loss": 1.0}

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    save_model = load = save


class OnOneDevice(SharedFakes, Supervised):
    pass


Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a stage to its end in one folder; what it said."""
    for score in ("_held_out_accuracy", "_held_out_caption_score"):
        monkeypatch.setattr(supervised, score, lambda context, step: (0.5, {}))

    def question(i: int) -> Prompt:
        return Prompt(f"held_out/{i}", "", "?", "", (), (1, 2, 3))

    def started(roles: Fakes, *overrides: str, stage: SupervisedStage = "sft", questions: int = 9) -> str:
        said, timer = io.StringIO(), PhaseTimer()
        context: Any = SimpleNamespace(
            config=compose_config(*SETTINGS, "learner.world_size=2", *overrides),
            compares=stage == "sft",
            folder=RunFolder(tmp_path),
            origin=lambda: "model",
            prompts=SimpleNamespace(
                demonstration=lambda stage, split, index, **seed: Sample(f"d{index}", question(index), (2,)),
                held_out=lambda count: [question(i) for i in range(min(count, questions))],
            ),
            roles=roles,
            residency=residency(roles, timer),  # type: ignore[arg-type]
            metrics=MagicMock(lines=0),
            log=MagicMock(),
            rollouts=MagicMock(lines=0),
            timer=timer,
            progress=StageProgress(stage, 2, console=Console(file=said, width=200)),
        )
        supervised.run_supervised(context, stage)
        return said.getvalue()

    return started


def test_every_engine_and_every_rank_is_compared_before_the_first_step(run: Run) -> None:
    roles = Supervised()
    said = run(roles, "sft.max_steps=2", "rollout.workers=3", "rollout.max_new_tokens=20")
    sampling = Sampling(completions=1, temperature=1.0, max_new_tokens=20, seed=5)
    asked = ("generate", [f"held_out/{i}" for i in range(3)], sampling)
    assert roles.calls == [("publish", 0), ("load", "weights 0"), asked, "check_log_probs", "fit", "fit"]
    (plan,) = roles.plans
    assert sorted(s.id for s in samples_of(plan)) == [f"held_out/{i}#0" for i in range(3)]
    assert len(plan.updates[0].shards) == 2 and all(any(shard) for shard in plan.updates[0].shards)
    assert "cold start: engines and learner agree: largest log-prob difference 2e-06 over 6 tokens\n" in said


def test_few_questions_are_answered_several_times(run: Run) -> None:
    roles = Supervised()
    run(roles, "sft.max_steps=2", "rollout.workers=3", questions=2)
    (asked,) = [call for call in roles.calls if call[0] == "generate"]
    assert (len(asked[1]), asked[2].completions, asked[2].max_new_tokens) == (2, 2, 32)
    assert len(samples_of(roles.plans[0])) == 4


def test_nothing_is_trained_where_they_differ(run: Run) -> None:
    roles = Supervised()
    roles.largest_gap = 0.5
    with pytest.raises(LogProbError, match=r"log-probs differ by 0\.5"):
        run(roles, "sft.max_steps=2")
    assert "fit" not in roles.calls


def test_a_session_that_continues_compares_the_weights_of_its_checkpoint(run: Run) -> None:
    """vLLM, its model runner or the GPUs may be others than before."""
    run(Supervised(), "sft.max_steps=2")
    roles = Supervised()
    run(roles, "sft.max_steps=4")
    published, loaded, _, *rest = roles.calls
    assert (published, loaded) == (("publish", 2), ("load", "weights 2"))
    assert rest == ["check_log_probs", "fit", "fit"]
    assert all(s.weight_version == 2 for s in samples_of(roles.plans[0]))
    others = Supervised()
    others.largest_gap = 0.5
    with pytest.raises(LogProbError, match=r"log-probs differ by 0\.5"):
        run(others, "sft.max_steps=6")
    assert "fit" not in others.calls


def test_a_session_without_steps_has_nothing_to_compare(run: Run) -> None:
    run(Supervised(), "sft.max_steps=2")
    roles = Supervised()
    run(roles, "sft.max_steps=2")
    assert roles.calls == []


def test_a_stage_without_engines_has_nothing_to_compare(run: Run) -> None:
    roles = Supervised()
    run(roles, stage="perceive")
    assert roles.calls == ["fit", "fit"]


def test_roles_on_shared_devices_take_turns(run: Run) -> None:
    roles = OnOneDevice()
    run(roles, "sft.max_steps=2")
    assert roles.calls[-3:] == ["check_log_probs", "fit", "fit"]
    assert roles.device.held == {"engines": Held.NOTHING, "learner": Held.ALL, "frozen": Held.ALL}


class Trained(Learner):
    """Roles of rl. As the real one, the learner does not read what it publishes until it travels."""

    def __init__(self) -> None:
        super().__init__((1.0,) * 3)

    def publish(self, version: int) -> WeightManifest:
        super().publish(version)
        return manifest(version, UNREAD)

    def offer(self, of: WeightManifest, names: Sequence[str]) -> tuple[Mapping[str, TensorDigest], str]:
        return super().offer(manifest(of.version, f"trained {of.version}"), names)

    load = Learner.save


class TrainedOnOneDevice(Trained, SharedFakes):
    pass


@pytest.fixture
def run_rl(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run rl to its end in one folder; what it said."""
    monkeypatch.setattr(rl, "media_ahead", lambda *_: nullcontext())
    monkeypatch.setattr(rl, "train_prompts", lambda *_: prompt)

    def started(roles: Fakes, *, compares: bool = True, steps: int = 2) -> str:
        said, timer = io.StringIO(), PhaseTimer()
        algorithm = config.algorithm.model_copy(update={"steps": steps})
        context = StageContext(
            config=config.model_copy(update={"algorithm": algorithm}),
            folder=RunFolder(tmp_path),
            model=tmp_path / "start",
            prompts=SimpleNamespace(held_out=lambda count: [prompt(i) for i in range(2)]),  # type: ignore[arg-type]
            roles=roles,  # type: ignore[arg-type]
            residency=residency(roles, timer),  # type: ignore[arg-type]
            metrics=MagicMock(lines=0),
            rollouts=MagicMock(lines=0),
            timer=timer,
            progress=StageProgress("rl", steps, console=Console(file=said, width=200)),
            peaks=MagicMock(take=dict),
            compares=compares,
        )
        rl.run_rl(context)
        return said.getvalue()

    return started


ASKED = ("generate", ["train/0", "train/1"], Sampling(completions=1, temperature=0.7, max_new_tokens=9, seed=5))
"""What a comparison generates at the temperature of rl."""


def published(version: int) -> list[Any]:
    return [("publish", version), ("load", f"weights {version}")]


@pytest.mark.parametrize("kind", [Trained, TrainedOnOneDevice])
def test_rl_compares_before_it_evaluates_and_gives_engines_the_weights_again(
    run_rl: Callable[..., str], kind: type[Trained]
) -> None:
    """After which their caches are empty, as without the comparison."""
    roles = kind()
    said = run_rl(roles)
    assert roles.calls[:6] == [*published(0), ASKED, "check_log_probs", *published(0)]
    assert said.count("engines and learner agree: largest log-prob difference 2e-06 over 4 tokens\n") == 1
    assert ASKED not in roles.calls[3:] and "check_log_probs" not in roles.calls[4:]
    continued = kind()
    run_rl(continued, steps=3)
    assert continued.calls[:6] == [*published(2), ASKED, "check_log_probs", *published(2)]


def test_rl_after_a_stage_that_compared_is_the_same_without_it(run_rl: Callable[..., str], tmp_path: Path) -> None:
    roles, after_sft = Trained(), Trained()
    run_rl(roles)
    (tmp_path / "checkpoints").rename(tmp_path / "those before")
    assert "agree" not in run_rl(after_sft, compares=False)
    assert roles.calls[4:] == after_sft.calls


def test_rl_neither_evaluates_nor_trains_where_they_differ(run_rl: Callable[..., str]) -> None:
    roles = Trained()
    roles.largest_gap = 0.5
    with pytest.raises(LogProbError, match=r"log-probs differ by 0\.5"):
        run_rl(roles)
    assert roles.calls == [*published(0), ASKED, "check_log_probs"]


@pytest.mark.parametrize(
    ("session", "compares"),
    [
        (["perceive", "sft", "rl"], ["sft"]),
        (["sft", "rl"], ["sft"]),
        (["perceive", "rl"], ["rl"]),
        (["rl"], ["rl"]),
        (["perceive"], []),
    ],
)
def test_a_session_compares_once(
    session: list[Stage], compares: list[Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for run in ("run_rl", "run_supervised"):
        monkeypatch.setattr(start, run, lambda context, *stage: seen.append(context.compares))
    monkeypatch.setattr(start, "open_prompts", lambda *_: SimpleNamespace())
    roles: Any = MagicMock(shared_devices=None)
    for stage in session:
        start.run_stage(
            compose_config(), RunFolder(tmp_path), stage, tmp_path, lambda *_: roles, lambda: MagicMock(), session
        )
    assert [stage for stage, found in zip(session, seen, strict=True) if found] == compares
