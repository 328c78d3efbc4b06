"""A configuration of three prompts with a group each."""

from collections.abc import Callable

import pytest

from ral_system.config.commands import TrainConfig
from tests.unit.controller.fakes import G


@pytest.fixture
def config(make_config: Callable[..., TrainConfig]) -> TrainConfig:
    return make_config(
        "algorithm.prompts_per_step=3",
        f"algorithm.completions_per_prompt={G}",
        "algorithm.updates_per_step=2",
        "rollout.temperature=0.7",
        "rollout.max_new_tokens=9",
        "seed=5",
    )
