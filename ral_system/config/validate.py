"""Validation of a plain container as a command's configuration. Mistakes become lines with field, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from ral_system.config import combinations
from ral_system.config.commands import CommandConfig
from ral_system.config.known import declared_fields, did_you_mean
from ral_system.config.variants import CHOSEN_AS_GROUPS, keys_to_suggest, variants, variants_of, which_has
from ral_system.errors import ConfigError

_Kind = TypeVar("_Kind", bound=CommandConfig)

_INTEGER = "not an integer; write one in digits, such as 2"
_NUMBER = "not a number; write one in digits, such as 0.5"
_BOOL = "neither true nor false; set one of them"
_GROUP = "not a group of settings; set its keys one by one, {field}.KEY=VALUE"
_SAID = {
    "greater_than": "out of range; set it above {gt:g}",
    "greater_than_equal": "out of range; set it to {ge:g} or more",
    "less_than": "out of range; set it below {lt:g}",
    "less_than_equal": "out of range; set it to {le:g} or less",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), _INTEGER),
    **dict.fromkeys(("float_type", "float_parsing"), _NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), _BOOL),
    "string_type": "not text; write it in quotes, on a command line within those of the shell: \"{field}='TEXT'\"",
    "tuple_type": "not a list; write one in brackets, [A,B]",
    "too_short": "too few values; give at least {min_length}",
    "too_long": "too many values; give at most {max_length}",
    "literal_error": "no such choice; use {expected}",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), _GROUP),
}
"""What is wrong and what to do, by pydantic's name of the error; with its context and the field."""


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
    """Return a line per legal choice that is known to cause trouble."""
    return [*combinations.warnings(config), *(line for group in config.groups() for line in group.warnings())]


def _causes(error: ValidationError) -> list[Any]:
    """Return the errors of a validation, without lists that are too short only because their entries are wrong."""
    errors = error.errors()
    wrong = [e["loc"][:-1] for e in errors if e["loc"]]
    return [e for e in errors if not (e["type"] == "too_short" and e["loc"] in wrong)]


def _one_problem(error: Any, kind: type[CommandConfig]) -> str:
    parts = [str(part) for part in error["loc"]]
    for union in (group.path.split(".") for group in variants(kind)):
        if parts[: len(union)] == union:
            del parts[len(union) : len(union) + 1]  # pydantic puts the choice's name there
    # Pydantic's words for a key of a dictionary, and for which types of a union it tried.
    field = ".".join(part for part in parts if part != "[key]" and not part.startswith(("literal[", "tuple[")))
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
    return _wrong_value(field, error, kind)


def _wrong_value(field: str, error: Any, kind: type[CommandConfig]) -> str:
    given = error["input"]
    value = "null" if given is None else str(given).lower() if isinstance(given, bool) else repr(given)
    said = f"{error['msg'][0].lower()}{error['msg'][1:]}"
    if error["type"] in _SAID:
        said = _SAID[error["type"]].format(field=field, **error.get("ctx", {}))
    nullable = any(path == field and type(None) in get_args(info.annotation) for path, info in declared_fields(kind))
    return f"{field}={value}: {said}{', or null' if nullable else ''}"


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
    """Return the field by which pydantic chooses a union's class."""
    return error["ctx"]["discriminator"].strip("'")
