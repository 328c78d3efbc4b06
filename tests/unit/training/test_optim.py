from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from ral_system.config.commands import TrainConfig
from ral_system.config.learner import RateFactorsConfig
from ral_system.config.schedule import ScheduleConfig
from ral_system.training.optim import OptimSettings, optim_settings, parameter_groups


def settings(shape: Any = "constant", end: float | None = None, *, warmup: int, total: int) -> OptimSettings:
    schedule = ScheduleConfig(shape=shape, end=end)
    factors = RateFactorsConfig(vision=1.0, projector=1.0)
    return OptimSettings(1e-3, (0.9, 0.99), 0.0, 1.0, warmup, schedule, total, factors)


def rates(settings: OptimSettings, updates: int | None = None) -> list[float]:
    """Learning rates in thousandths."""
    return [1e3 * settings.rate(update) for update in range(updates or settings.total_updates)]


def test_a_constant_rate_rises_linearly_and_stays() -> None:
    assert rates(settings(warmup=4, total=6), 8) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    assert settings(warmup=0, total=6).rate(0) == 1e-3


@pytest.mark.parametrize(
    ("shape", "end", "warmup", "total", "expected"),
    [
        ("linear", 0.2, 2, 6, [0.5, 1, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 0.0, 0, 5, [1, 0.75, 0.5, 0.25, 0]),
        ("linear", 0.5, 1, 3, [1, 0.75, 0.5]),  # a warm-up of one update is none
        ("cosine", 0.0, 2, 6, [0.5, 1, 0.853553, 0.5, 0.146447, 0]),  # (1 + cos 45°) / 2, and so on
        ("cosine", 0.1, 0, 4, [1, 0.775, 0.325, 0.1]),  # 0.1 + 0.9 · (1 + cos 60°) / 2
        ("linear", 0.2, 8, 4, [0.125, 0.25, 0.375, 0.5]),  # the run ends within its warm-up
        ("cosine", 0.2, 4, 4, [0.25, 0.5, 0.75, 1]),
        ("linear", 0.2, 0, 1, [1]),
        ("linear", 0.2, 3, 4, [1 / 3, 2 / 3, 1, 0.2]),
    ],
)
def test_a_rate_falls_to_its_end_at_the_last_update(
    shape: str, end: float, warmup: int, total: int, expected: list[float]
) -> None:
    assert rates(settings(shape, end, warmup=warmup, total=total)) == pytest.approx(expected, abs=1e-6)


def test_no_rate_is_below_the_end() -> None:
    falling = settings("cosine", 0.1, warmup=2, total=6)
    assert falling.rate(9) == pytest.approx(1e-4)


def test_a_longer_run_has_the_rates_of_the_longer_schedule() -> None:
    short, long = (settings("linear", 0.0, warmup=0, total=total) for total in (5, 9))
    assert 1e3 * short.rate(4) == 0
    assert 1e3 * long.rate(4) == pytest.approx(0.5)


def test_parameters_are_grouped_by_the_factor_of_their_part() -> None:
    model = nn.ModuleDict({name: nn.Linear(1, 1) for name in ("text", "vision", "projector", "frozen")})
    model["vision"].register_module("inner", nn.Linear(1, 1))
    model["frozen"].requires_grad_(False)
    policy: Any = nn.Module()
    policy.model = model
    policy.family = SimpleNamespace(vision_encoder=lambda m: m["vision"], projector=lambda m: [m["projector"]])

    def grouped(vision: float, projector: float) -> dict[float, list[str]]:
        groups = parameter_groups(policy, RateFactorsConfig(vision=vision, projector=projector))
        names = {parameter: name for name, parameter in model.named_parameters()}
        return {group.rate_factor: [names[p] for p in group.parameters] for group in groups}

    text, vision, inner, projector = (
        [f"{name}.weight", f"{name}.bias"] for name in ("text", "vision", "vision.inner", "projector")
    )
    assert grouped(0.1, 3.0) == {1.0: text, 0.1: vision + inner, 3.0: projector}
    assert grouped(0.1, 0.1) == {1.0: text, 0.1: vision + inner + projector}
    assert grouped(1.0, 1.0) == {1.0: text + vision + inner + projector}
    policy.family.projector = lambda m: [m["vision"].inner]
    assert grouped(0.1, 3.0) == {1.0: text + projector, 0.1: vision, 3.0: inner}


def test_every_stage_has_its_own_settings(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(
        "learner.learning_rate=1e-5",
        "learner.weight_decay=0.1",
        "learner.max_grad_norm=2",
        "learner.schedule={shape: linear, end: 0}",
        "algorithm.steps=7",
        "algorithm.updates_per_step=2",
        "algorithm.passes_per_step=3",
        "perceive.learning_rate=1e-3",
        "perceive.weight_decay=0.2",
        "sft.betas=[0.8,0.9]",
        "sft.weight_decay=0.3",
        "sft.warmup_updates=7",
        "sft.max_steps=11",
        "sft.schedule={shape: cosine, end: 0.1}",
    )
    rl, perceive, sft = (optim_settings(config, stage) for stage in ("rl", "perceive", "sft"))
    assert (rl.learning_rate, rl.weight_decay) == (1e-5, 0.1)
    assert (perceive.learning_rate, perceive.weight_decay) == (1e-3, 0.2)
    assert (sft.betas, sft.weight_decay, sft.warmup_updates) == ((0.8, 0.9), 0.3, 7)
    assert {s.max_grad_norm for s in (rl, perceive, sft)} == {2.0}
    assert (rl.total_updates, perceive.total_updates, sft.total_updates) == (42, config.perceive.max_steps, 11)
    assert [s.schedule.shape for s in (rl, perceive, sft)] == ["linear", "constant", "cosine"]
