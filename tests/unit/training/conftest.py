from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ral_system.config.schema import RunConfig
from ral_system.data.collate import Collator
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_processor
from ral_system.scoring.build import build_policy
from ral_system.training.learner_rank import LearnerRank
from ral_system.types import Sample

ADVANTAGES = (1.0, -0.7, 0.4, -1.3, 0.0, 0.9)


@pytest.fixture(scope="session")
def rl_samples(
    tiny_model: Path, media: MediaStore, draw_samples: Callable[[int], list[Sample]], make_config: Callable
) -> list[Sample]:
    """Twelve samples with advantages of both signs, and the log-probs that the tiny model gives them."""
    policy = build_policy(make_config(), tiny_model, torch.device("cpu"))
    collate = Collator(load_processor(tiny_model), media)
    found = []
    for i, sample in enumerate(draw_samples(12)):
        with torch.no_grad():
            log_probs = policy(collate((sample,)), with_attention=False).log_probs[0].tolist()
        found.append(replace(sample, rollout_log_probs=tuple(log_probs), advantage=ADVANTAGES[i % 6]))
    return found


@pytest.fixture(scope="session")
def start_rank(tiny_model: Path, media: MediaStore) -> Callable[..., LearnerRank]:
    """A learner of one rank on the tiny model's weights."""

    def started(config: RunConfig, stage: str = "rl") -> LearnerRank:
        return LearnerRank(config, tiny_model, media, rank=0, world_size=1, stage=stage)

    return started
