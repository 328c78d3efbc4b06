"""Your own function, by import path: `reward.function=my_rewards:closeness`."""

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ral_system.config.reward import JudgeConfig
from ral_system.errors import ConfigError


def score(given: str, reference: str, config: JudgeConfig) -> float:
    """Return the value of the user's function of (answer, reference), a number in [0, 1].

    Raises ConfigError for any other value, and if the function cannot be imported or fails.
    """
    function = _function(config.function or "")
    try:
        found = function(given, reference)
    except Exception as error:
        raise ConfigError(f"reward.function={config.function} raised {type(error).__name__}: {error}") from error
    value = _number(found)
    if value is None or not 0 <= value <= 1:
        raise ConfigError(
            f"reward.function={config.function} returned {str(found)[:80]}; it must return a number in [0, 1]"
        )
    return value


def prepare(config: JudgeConfig) -> None:
    """Import the function. Raises ConfigError that says what to fix."""
    _function(config.function or "")


@functools.cache
def _function(path: str) -> Callable[[str, str], float]:
    module, _, name = path.partition(":")
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        raise ConfigError(f"reward.function={path}: {_why_not_imported(module, error)}") from error
    try:
        found = operator.attrgetter(name)(imported)
    except AttributeError:
        place = imported.__file__ or module
        raise ConfigError(
            f"reward.function={path}: {place} has no {name}; correct the name, or define it there"
        ) from None
    if not callable(found):
        raise ConfigError(f"reward.function={path}: {name} is {str(found)[:80]}; name a function")
    return cast(Callable[[str, str], float], found)


def _why_not_imported(module: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        return f"{error}; put the module into {Path.cwd()}, or install it"
    return f"importing {module} raised {type(error).__name__}: {error}; fix the module"


def _number(found: Any) -> float | None:
    try:
        return float(found)
    except (TypeError, ValueError):
        return None
