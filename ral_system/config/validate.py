"""From a plain container to a `RunConfig`: every mistake becomes one line with field, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ral_system.config import combinations
from ral_system.config.known import did_you_mean, is_known
from ral_system.config.run import RunConfig
from ral_system.errors import ConfigError


def parse_config(container: Mapping[str, Any]) -> RunConfig:
    """Validate types, ranges and combinations. Raises ConfigError."""
    try:
        config = RunConfig.model_validate(container)
    except ValidationError as error:
        raise ConfigError("; ".join(_one_problem(e) for e in error.errors())) from None
    problems = [*combinations.problems(config), *(line for group in config.groups() for line in group.problems())]
    if problems:
        raise ConfigError("; ".join(problems))
    return config


def warnings(config: RunConfig) -> list[str]:
    """Legal choices that are known to go wrong, one line each."""
    return [*combinations.warnings(config), *(line for group in config.groups() for line in group.warnings())]


def _one_problem(error: Any) -> str:
    parts = [str(part) for part in error["loc"]]
    for union in (["algorithm", "policy_loss"], ["data"], ["rollout"], ["learner"]):
        if parts[: len(union)] == union:
            del parts[len(union) : len(union) + 1]  # pydantic puts the choice's name there
    field = ".".join(part for part in parts if part != "[key]")  # pydantic's word for a key of a dictionary
    if error["type"] == "model_attributes_type" and field == "algorithm.policy_loss":
        return f"{field}={error['input']!r}: a loss is chosen as algorithm/policy_loss={error['input']}"
    if error["type"] == "extra_forbidden":
        return _unknown_key(field, error)
    if error["type"] == "string_pattern_mismatch" and field == "name":
        better = re.sub(r"[^A-Za-z0-9._-]+", "_", error["input"]).lstrip(".-") or "run"
        return f"name={error['input']!r}: a run's name has letters, digits, '_', '.' and '-' only; set name={better}"
    if error["type"] == "string_pattern_mismatch" and field == "reward.function":
        return f"{field}={error['input']!r}: write module:function, such as my_rewards:closeness for my_rewards.py"
    if error["type"] == "unknown_name":
        return f"{field}={error['input']}: {error['msg']}" if parts[-1] != "[key]" else f"{field}: {error['msg']}"
    if error["type"] == "settings_of_package":
        return f"{field}.{error['msg']}"
    if error["type"] == "missing":
        return f"{field}: missing; set it in the config"
    if error["type"] == "union_tag_not_found":
        return f"{field}.{_choice(error)}: missing; set it in the config"
    if error["type"] == "union_tag_invalid":
        given, known = error["ctx"]["tag"], error["ctx"]["expected_tags"]
        return f"{field}.{_choice(error)}={given}: no such choice; use one of {known}"
    if error["type"] == "half_a_source":
        return f"{field} has a path and no columns: ~{field} removes it"
    return f"{field}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _unknown_key(field: str, error: Any) -> str:
    if not is_known(field):
        return f"{field}: unknown key; remove it; {did_you_mean(field) or '--cfg job shows the known ones'}"
    group = field.split(".")[0]
    if group in ("rollout", "learner"):
        return (
            f"{field}={error['input']!r}: {group}.engine={error['loc'][1]} has no such setting; remove it (~{field}), "
            f"or choose the engine as a group, {group}=NAME"
        )
    group = "algorithm/policy_loss" if field.startswith("algorithm.policy_loss.") else group
    return f"{field}: unknown key here; remove it, or choose another {group}=NAME, which has it"


def _choice(error: Any) -> str:
    """The field by which pydantic chooses a union's class."""
    return error["ctx"]["discriminator"].strip("'")
