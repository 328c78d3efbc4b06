"""From a plain container to a command's configuration: every mistake becomes one line with field, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from ral_system.config import combinations
from ral_system.config.commands import CommandConfig
from ral_system.config.known import did_you_mean
from ral_system.config.variants import CHOSEN_AS_GROUPS, keys_to_suggest, variants, variants_of, which_has
from ral_system.errors import ConfigError

_Kind = TypeVar("_Kind", bound=CommandConfig)


def parse_config(container: Mapping[str, Any], kind: type[_Kind]) -> _Kind:
    """Validate types, ranges and combinations. Raises ConfigError."""
    try:
        config = kind.model_validate(container)
    except ValidationError as error:
        raise ConfigError("; ".join(_one_problem(e, kind) for e in _causes(error))) from None
    problems = [*combinations.problems(config), *(line for group in config.groups() for line in group.problems())]
    if problems:
        raise ConfigError("; ".join(problems))
    return config


def warnings(config: CommandConfig) -> list[str]:
    """Legal choices that are known to go wrong, one line each."""
    return [*combinations.warnings(config), *(line for group in config.groups() for line in group.warnings())]


def _causes(error: ValidationError) -> list[Any]:
    """Leave out of a list that it is too short, where that is because its entries are wrong."""
    errors = error.errors()
    wrong = [e["loc"][:-1] for e in errors if e["loc"]]
    return [e for e in errors if not (e["type"] == "too_short" and e["loc"] in wrong)]


def _one_problem(error: Any, kind: type[CommandConfig]) -> str:
    parts = [str(part) for part in error["loc"]]
    for union in (group.path.split(".") for group in variants(kind)):
        if parts[: len(union)] == union:
            del parts[len(union) : len(union) + 1]  # pydantic puts the choice's name there
    field = ".".join(part for part in parts if part != "[key]")  # pydantic's word for a key of a dictionary
    if error["type"] == "model_attributes_type" and field in CHOSEN_AS_GROUPS:
        name = error["input"] if isinstance(error["input"], str) else "NAME"
        group = f"{field.replace('.', '/')}={name}"
        return f"{field}={error['input']!r}: {CHOSEN_AS_GROUPS[field]} is chosen as a group, {group}"
    if error["type"] == "extra_forbidden":
        return _unknown_key(field, error, kind)
    if error["type"] == "string_pattern_mismatch" and field == "name":
        better = re.sub(r"[^A-Za-z0-9._-]+", "_", error["input"]).lstrip(".-") or "run"
        return f"name={error['input']!r}: a run's name has letters, digits, '_', '.' and '-' only; set name={better}"
    if error["type"] == "string_pattern_mismatch" and field == "reward.function":
        return f"{field}={error['input']!r}: write module:function, such as my_rewards:closeness for my_rewards.py"
    if error["type"] == "unknown_name":
        return f"{field}={error['input']}: {error['msg']}" if parts[-1] != "[key]" else f"{field}: {error['msg']}"
    if error["type"] == "of_field_inside":
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


def _unknown_key(field: str, error: Any, kind: type[CommandConfig]) -> str:
    group, elsewhere = variants_of(field, kind), which_has(field, kind)
    if group is None or not elsewhere:
        meant = did_you_mean(field, keys_to_suggest(kind))
        return f"{field}: unknown key; remove it; {meant or '--cfg job shows the known ones'}"
    chosen = error["loc"][len(group.path.split("."))]
    return (
        f"{field}={error['input']!r}: {group.path}.{group.tag}={chosen} has no such setting; remove it (~{field}), or "
        f"choose {group.choice_of([chosen])} as a group, without it, or {elsewhere}"
    )


def _choice(error: Any) -> str:
    """The field by which pydantic chooses a union's class."""
    return error["ctx"]["discriminator"].strip("'")
