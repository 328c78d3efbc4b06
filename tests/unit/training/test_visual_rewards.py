"""Who measures the visual-anchored reward: the learner at the rollout's weights, or the frozen reference."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ral_system.attention.read import AttentionRead
from ral_system.attention.visual_reward import response_visual_rewards
from ral_system.batches.collate import Collator
from ral_system.config.commands import TrainConfig
from ral_system.media.store import MediaStore
from ral_system.scoring.build import build_policy
from ral_system.scoring.reference import ReferenceScorer
from ral_system.scoring.scores import visual_rewards
from ral_system.types import Sample, Scores
from tests.unit.training.learners import Start, plan

RESPONSE = AttentionRead(layers="all")

COMMON = (
    "learner.engine=torch",
    "learner.world_size=1",
    "learner.learning_rate=0.01",
    "algorithm.attention.heads=each",
)


@pytest.fixture
def direct(tiny_model: Path, media: MediaStore, rl_samples: list[Sample], make_config) -> dict[str, float | None]:
    """Each sample alone."""
    policy = build_policy(
        tiny_model, torch.device("cpu"), RESPONSE, dtype="float32", temperature=make_config().rollout.temperature
    )
    collate = Collator(policy.family, media)
    found = {}
    for sample in rl_samples:
        batch = collate((sample,))
        with torch.no_grad():
            (attention,) = policy(batch, [RESPONSE]).attention[RESPONSE]
        (found[sample.id],) = response_visual_rewards(attention, batch.keys, "share")
    return found


def test_the_learner_measures_its_own_as_the_rollout_was_made(
    start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample], direct: dict[str, float]
) -> None:
    rank, split = start_rank(make_config(*COMMON, "reward.visual.weight=0.3")), plan(rl_samples, 2, 3)
    scores = rank.score(split)
    assert visual_rewards(scores) == {id: pytest.approx(value, rel=1e-5) for id, value in direct.items()}
    assert len(set(direct.values())) > 6
    for update in split.updates:
        rank.update(update, scores, scores)
    rank._config = make_config(*COMMON, "reward.visual.weight=0.3", "rollout.log_prob_gate.token=10")
    moved = visual_rewards(rank.score(split))
    assert all(abs(moved[id] - value) > 1e-6 for id, value in direct.items())


def test_the_reference_measures_only_what_is_asked_of_it(
    tiny_model: Path,
    media: MediaStore,
    make_config: Callable[..., TrainConfig],
    rl_samples: list[Sample],
    direct: dict[str, float],
    start_rank: Start,
) -> None:
    def frozen(config: TrainConfig) -> Scores:
        groups = (config.algorithm.attention, config.reward.visual)
        scorer = ReferenceScorer(*groups, tiny_model, media, dtype="float32", temperature=1.0, max_tokens=150)
        for half in (rl_samples[:5], rl_samples[5:]):
            scorer.score(half)
        return scorer.take([s.id for s in rl_samples])

    asked = make_config(
        *COMMON, "reward.visual.weight=0.3", "reward.visual.model=reference", "algorithm.kl.coefficient=0"
    )
    assert asked.needs_reference
    scores = frozen(asked)
    assert visual_rewards(scores) == {id: pytest.approx(value, rel=1e-5) for id, value in direct.items()}
    assert all(not s.attention for s in scores.values())
    assert visual_rewards(start_rank(asked).score(plan(rl_samples, 1, 5))) == {}
    other = make_config(*COMMON, "reward.visual.weight=0.3")
    assert visual_rewards(frozen(other)) == {}
