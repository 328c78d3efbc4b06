"""Reward settings for tests."""

from typing import Any

from ral_system.config.reward import RewardConfig

DEFAULTS: dict[str, Any] = {
    "verifier": "exact",
    "kinds": {},
    "function": None,
    "tolerance": {"absolute": 1e-6, "relative": 0.0},
    "correctness": 0.9,
    "format": 0.1,
    "signals": {},
    "visual": {"weight": 0.0, "form": "share", "model": "policy"},
    "workers": 1,
    "timeout_s": 2.0,
    "memory_gib": 4.0,
}


def reward_config(**changes: Any) -> RewardConfig:
    return RewardConfig.model_validate(DEFAULTS | changes)
