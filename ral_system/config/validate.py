"""Validation of a plain container as a command's configuration. Mistakes become lines with field, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from ral_system.config import combinations
from ral_system.config.commands import CommandConfig
from ral_system.config.known import declared_fields, did_you_mean, takes_list
from ral_system.config.variants import (
    CHOSEN_AS_GROUPS,
    GIVEN_WHOLE,
    Variants,
    keys_to_suggest,
    variants,
    variants_of,
    which_has,
)
from ral_system.errors import ConfigError

_Kind = TypeVar("_Kind", bound=CommandConfig)

_MOST_NAMES = 3
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
    """Validate types, ranges and combinations. Raises ConfigError with all problems."""
    try:
        config = kind.model_validate(container)
    except ValidationError as error:
        raise ConfigError(*_lines(_problems(error, container, kind), kind)) from None
    problems = [*combinations.problems(config), *(line for group in config.groups() for line in group.problems())]
    if problems:
        raise ConfigError(*problems)
    return config


def warnings(config: CommandConfig) -> list[str]:
    """Return a line per legal choice that is known to cause trouble."""
    return [*combinations.warnings(config), *(line for group in config.groups() for line in group.warnings())]


@dataclass(frozen=True, slots=True)
class _Problem:
    """What pydantic found wrong at one place."""

    error: Any
    type: str
    """Pydantic's name of the error."""
    field: str
    """Dotted key, without the place in a list."""
    given: Any
    """The wrong value; of a list its entry."""
    whole: list[Any] | None
    """The list with other entries that this is one of."""
    group: Variants | None
    """The group that it is in, where that is one of several classes."""

    @property
    def chosen(self) -> str:
        """The choice of that group."""
        assert self.group is not None
        return self.error["loc"][len(self.group.path.split("."))]


def _problems(error: ValidationError, container: Mapping[str, Any], kind: type[CommandConfig]) -> Iterator[_Problem]:
    errors = error.errors()
    wrong = [e["loc"][:-1] for e in errors if e["loc"]]
    for one in errors:
        if one["type"] == "too_short" and one["loc"] in wrong:  # its entries are wrong
            continue
        parts, group = _place(one["loc"], kind)
        field = ".".join(part for part in parts if isinstance(part, str))
        yield _Problem(one, one["type"], field, one["input"], _list_around(parts, container), group)


def _place(loc: Sequence[int | str], kind: type[CommandConfig]) -> tuple[list[int | str], Variants | None]:
    """Keys and places in lists that lead to an error, and the group of several classes that it is in."""
    parts, group = [*loc], None
    for union in variants(kind):
        path = union.path.split(".")
        if parts[: len(path)] == path:
            group = variants_of(f"{union.path}.", kind)
            del parts[len(path) : len(path) + 1]  # pydantic puts the choice's name there
    # Pydantic's words for a key of a dictionary, and for which types of a union it tried.
    return [part for part in parts if not str(part).startswith(("[key]", "literal[", "tuple["))], group


def _list_around(parts: Sequence[int | str], container: Mapping[str, Any]) -> list[Any] | None:
    """The list of several entries that the parts lead into; None for no list and for a single value."""
    found: Any = container
    for part in parts:
        if isinstance(part, int):
            return list(found) if isinstance(found, list | tuple) and len(found) > 1 else None
        found = found.get(part) if isinstance(found, Mapping) else None
    return None


def _lines(found: Iterator[_Problem], kind: type[CommandConfig]) -> Iterator[str]:
    """A line per problem: of a field, or of a group that was given the keys of another choice or a part of its own."""
    by_subject: dict[str, list[_Problem]] = {}
    for problem in found:
        by_subject.setdefault(_subject(problem, kind), []).append(problem)
    for subject, problems in by_subject.items():
        group = problems[0].group
        if subject in GIVEN_WHOLE and problems[0].type == "missing":
            yield f"{subject}: without {_listed(problems)}; give all of it, as in {GIVEN_WHOLE[subject]}"
        elif group is not None and subject == group.path and len(problems) > 1:
            yield _another_choice(group, problems)
        else:
            yield from (_one_problem(problem, kind) for problem in _looked_like(problems))


def _subject(problem: _Problem, kind: type[CommandConfig]) -> str:
    group, parent = problem.group, problem.field.rpartition(".")[0]
    if problem.type == "missing" and parent in GIVEN_WHOLE:
        return parent
    of_another = problem.type == "extra_forbidden" and which_has(problem.field, kind)
    if group is not None and (of_another or (problem.type == "missing" and parent == group.path)):
        return group.path
    return problem.field


def _another_choice(group: Variants, problems: Sequence[_Problem]) -> str:
    """Say once that a choice was changed by its field alone, or that a file sets keys of another."""
    chosen = problems[0].chosen
    foreign = [problem for problem in problems if problem.type == "extra_forbidden"]
    missing = [problem for problem in problems if problem.type == "missing"]
    says = [f"{what} {_listed(keys)}" for what, keys in (("has no", foreign), ("needs", missing)) if keys]
    remove = "" if missing else f", or remove those keys (~{foreign[0].field})"
    remedy = f"choose {group.choice_of([chosen])} as a group{remove}"
    return f"{group.path}.{group.tag}={chosen} {', and '.join(says)}; {remedy}"


def _listed(problems: Sequence[_Problem]) -> str:
    names = [problem.field.rpartition(".")[2] for problem in problems]
    if len(names) > _MOST_NAMES + 1:
        names = [*names[:_MOST_NAMES], f"{len(names) - _MOST_NAMES} more"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _looked_like(problems: Sequence[_Problem]) -> Sequence[_Problem]:
    """Keep one line for a field that takes some words or a list: that of the kind that was given."""
    types = {problem.type for problem in problems}
    if "literal_error" not in types or len(types) == 1:
        return problems
    unlike = "literal_error" if isinstance(problems[0].given, list | tuple) else "tuple_type"
    return [problem for problem in problems if problem.type != unlike]


def _one_problem(problem: _Problem, kind: type[CommandConfig]) -> str:
    error, field, given = problem.error, problem.field, problem.given
    if problem.type == "model_attributes_type" and field in CHOSEN_AS_GROUPS:
        group = f"{field.replace('.', '/')}={given if isinstance(given, str) else 'NAME'}"
        return f"{field}={given!r}: {CHOSEN_AS_GROUPS[field]} is chosen as a group, {group}"
    if problem.type == "extra_forbidden":
        return _unknown_key(problem, kind)
    if problem.type == "string_pattern_mismatch" and field == "name":
        better = re.sub(r"[^A-Za-z0-9._-]+", "_", given).lstrip(".-") or "run"
        return f"name={given!r}: a run's name has letters, digits, '_', '.' and '-' only; set name={better}"
    if problem.type == "string_pattern_mismatch" and field == "reward.function":
        return f"{field}={given!r}: write module:function, such as my_rewards:closeness for my_rewards.py"
    if problem.type == "unknown_name":
        return f"{field}={given}: {error['msg']}" if error["loc"][-1] != "[key]" else f"{field}: {error['msg']}"
    if problem.type == "of_field_inside":
        return f"{field}.{error['msg']}"
    if problem.type == "missing":
        return f"{field}: missing; set it in the config"
    if problem.type == "union_tag_not_found":
        return f"{field}.{_choice(error)}: missing; set it in the config"
    if problem.type == "union_tag_invalid":
        tag, tags = error["ctx"]["tag"], error["ctx"]["expected_tags"]
        return f"{field}.{_choice(error)}={tag}: no such choice; use one of {tags}"
    if problem.type == "half_a_source":
        return f"{field} has a path and no columns: ~{field} removes it"
    return _wrong_value(problem, kind)


def _wrong_value(problem: _Problem, kind: type[CommandConfig]) -> str:
    error, field = problem.error, problem.field
    said = f"{error['msg'][0].lower()}{error['msg'][1:]}"
    if problem.type in _SAID:
        said = _SAID[problem.type].format(field=field, **error.get("ctx", {}))
    if field in GIVEN_WHOLE:
        said = f"not a group of settings; give all of it, as in {GIVEN_WHOLE[field]}"
    if str(error["loc"][-1]).startswith("literal[") and takes_list(field, kind):
        said += ", or a list in brackets, [A,B]"
    if any(path == field and type(None) in get_args(info.annotation) for path, info in declared_fields(kind)):
        said += ", or null"
    if problem.whole is not None:
        return f"{field}={problem.whole}, entry {_shown(problem.given)}: {said}"
    return f"{field}={_shown(problem.given)}: {said}"


def _unknown_key(problem: _Problem, kind: type[CommandConfig]) -> str:
    field, group, elsewhere = problem.field, problem.group, which_has(problem.field, kind)
    if group is None or not elsewhere:
        meant = did_you_mean(field, keys_to_suggest(kind))
        return f"{field}: unknown key; remove it; {meant or '--cfg job shows the known ones'}"
    return (
        f"{field}={_shown(problem.given)}: {group.path}.{group.tag}={problem.chosen} has no such setting; remove it "
        f"(~{field}), or choose {group.choice_of([problem.chosen])} as a group, without it, or {elsewhere}"
    )


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _choice(error: Any) -> str:
    """Return the field by which pydantic chooses a union's class."""
    return error["ctx"]["discriminator"].strip("'")
