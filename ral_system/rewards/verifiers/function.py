"""Your own function, by import path: `reward.function=my_rewards:closeness`."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ral_system.config.schema import RewardConfig


def score(given: str, reference: str, config: RewardConfig) -> float:
    """What the function says of the answer and the reference: a number in [0, 1]."""
    return float(_function(config.function or "")(given, reference))


@functools.cache
def _function(path: str) -> Callable[[str, str], float]:
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return cast(Callable[[str, str], float], found)


def prepare(config: RewardConfig) -> None:
    """Import the function. Raises ImportError that says where it was looked for."""
    try:
        _function(config.function or "")
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"reward.function={config.function}: {error}; put the module into {Path.cwd()}, or install it"
        ) from error
