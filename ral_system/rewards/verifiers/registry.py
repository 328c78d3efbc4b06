"""Verifiers by name. Each is imported when it is asked for: a process that judges letters loads no computer algebra."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from ral_system.config.reward import RewardConfig

Score = Callable[[str, str, RewardConfig], float]
"""(given answer, reference answer, settings) → [0, 1]"""


def verifier_of(config: RewardConfig) -> Score:
    """The one that `config.verifier` names. Raises what importing it, or the user's function, raises."""
    module = importlib.import_module(f"ral_system.rewards.verifiers.{config.verifier}")
    if config.verifier == "function":
        module.prepare(config)
    found: Score = module.score
    return found
