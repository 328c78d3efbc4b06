"""Steps of the algorithm with adapters, in one process: generation with merged weights, and no second model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ral_system.config.commands import TrainConfig
from ral_system.controller.loop import TrainingLoop
from ral_system.controller.residency import residency
from ral_system.in_process import InProcessRoles
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_model
from ral_system.observability.progress import PhaseTimer
from ral_system.scoring.frozen import FrozenScorer
from ral_system.types import Sample

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def roles(
    make_config: Callable[..., TrainConfig],
    tiny_model: Path,
    media: MediaStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[InProcessRoles, TrainConfig]]:
    config = make_config(
        *("experiment=smoke", "cluster=local", "stages=[rl]", "algorithm.attention.anchor=reference"),
        "learner.lora={rank: 4, alpha: 8, targets: [q_proj, k_proj, v_proj], vision: false}",
        *("learner.learning_rate=1e-2", "learner.warmup_updates=0", "algorithm.kl.coefficient=0.1"),
        "algorithm.entropy_coefficient=1",  # random answers earn nothing to learn from
    )

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a frozen model was loaded")

    monkeypatch.setattr(FrozenScorer, "__init__", refused)
    (tmp_path / "media").symlink_to(media.folder)
    roles = InProcessRoles(config, "rl", tiny_model, tmp_path)
    yield roles, config
    roles.close()


def test_steps_train_adapters_towards_rewards_and_away_from_the_reference(
    roles: tuple[InProcessRoles, TrainConfig],
    draw_samples: Callable[[int], list[Sample]],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    (mine, config), prompts = roles, [sample.prompt for sample in draw_samples(12)]
    timer = PhaseTimer()
    loop = TrainingLoop(config, mine, lambda i: prompts[i], timer, residency(mine, timer))
    weights = load_model(tiny_model, dtype="float32").state_dict()
    assert loop.publish() == len(weights)
    steps = [loop.step().metrics for _ in range(3)]
    assert all(step["gate/tensors_verified"] == len(weights) for step in steps)
    assert all(step["gate/log_prob_diff_max"] < 1e-4 for step in steps)  # merged there, apart here
    assert steps[0]["attention/divergence_first_update"] == 0  # adapters start as nothing
    assert 0 < steps[0]["policy/kl"] < steps[2]["policy/kl"]
    assert steps[2]["attention/divergence_first_update"] > 0
    mine.learner.save_model(tmp_path / "model")
    trained = load_model(tmp_path / "model", dtype="float32").state_dict()
    changed = {name.split(".")[-2] for name, weight in trained.items() if not torch.equal(weight, weights[name])}
    assert changed == {"q_proj", "k_proj", "v_proj"}
