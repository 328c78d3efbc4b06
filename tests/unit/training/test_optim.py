from collections.abc import Callable

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.training.optim import OptimSettings, optim_settings


def test_the_rate_rises_linearly_and_stays() -> None:
    settings = OptimSettings(1e-3, betas=(0.9, 0.99), weight_decay=0.0, max_grad_norm=1.0, warmup_updates=4)
    assert [settings.rate(update) for update in range(6)] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])
    at_once = OptimSettings(1e-3, betas=(0.9, 0.99), weight_decay=0.0, max_grad_norm=1.0, warmup_updates=0)
    assert at_once.rate(0) == 1e-3


def test_every_stage_has_its_own_settings(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(
        "learner.learning_rate=1e-5",
        "learner.weight_decay=0.1",
        "learner.max_grad_norm=2",
        "perceive.learning_rate=1e-3",
        "perceive.weight_decay=0.2",
        "sft.betas=[0.8,0.9]",
        "sft.weight_decay=0.3",
        "sft.warmup_updates=7",
    )
    rl, perceive, sft = (optim_settings(config.learner, of) for of in (None, config.perceive, config.sft))
    assert (rl.learning_rate, rl.weight_decay) == (1e-5, 0.1)
    assert (perceive.learning_rate, perceive.weight_decay) == (1e-3, 0.2)
    assert (sft.betas, sft.weight_decay, sft.warmup_updates) == ((0.8, 0.9), 0.3, 7)
    assert {s.max_grad_norm for s in (rl, perceive, sft)} == {2.0}
