"""Known configuration keys, and suggestions for mistyped ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ral_system.config.commands import COMMANDS, CommandConfig

ANY = "*"
"""Stands for a name that the user chooses, as in `data.sources.*.path`."""
RENAMED = {
    "learner.micro_batch": "learner.max_tokens",
    "logging.attention_entropy_alarm": "alarms.attention_entropy",
    "logging.rollouts_per_step": "logging.groups_per_step",
    "rollout.max_log_prob_difference": "rollout.log_prob_gate.token",
    "teacher.micro_batch": "teacher.max_tokens",
}
"""Keys of earlier versions, and the keys that replaced them."""
_MOST = 3
_SHORTEST = 4
"""Minimum length for fuzzy matching; shorter words match anything."""


@cache
def known_keys(kind: type[BaseModel]) -> frozenset[str]:
    """Return every dotted key of groups and fields, for all choices: `learner`, `learner.betas`,
    `data.sources.*.path`."""
    return frozenset(path for path, _ in declared_fields(kind))


def declared_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted key and declaration of every field, including groups, for all choices."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        for inner, star in _models(field.annotation):
            yield from declared_fields(inner, f"{path}.{ANY}." if star else f"{path}.")


def models_in(field: FieldInfo) -> list[type[BaseModel]]:
    """Return the configuration classes in a field's annotation."""
    return [model for model, _ in _models(field.annotation)]


def declared_keys(config: BaseModel, mark: object, prefix: str = "") -> dict[str, bool]:
    """Return every dotted key that the classes of a configuration declare, including those of installed packages, and
    whether it carries a mark such as `Resumable`.
    """
    found = {}
    for name, field in type(config).model_fields.items():
        found[f"{prefix}{name}"] = mark in field.metadata
        value = getattr(config, name)
        for path, inner in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(inner, BaseModel):
                found |= declared_keys(inner, mark, ".".join(filter(None, (f"{prefix}{name}", path))) + ".")
    return found


@cache
def open_keys(kind: type[BaseModel]) -> frozenset[str]:
    """Return the keys of dictionaries of plain values whose names the user chooses, such as `reward.kinds`."""
    return frozenset(
        path for path, field in declared_fields(kind) if get_origin(field.annotation) is dict and not models_in(field)
    )


def is_known(key: str, kind: type[BaseModel]) -> bool:
    """Return whether some choice of the groups has the key."""
    return key in known_keys(kind) or any(_filled(known, key) == key for known in known_keys(kind) if ANY in known)


@cache
def other_readers(key: str, kind: type[CommandConfig]) -> tuple[str, ...]:
    """Return the commands that read a key, or the group that it is in, if `kind` does not; none for any other key.

    Of commands that share a class, or whose class extends another's, only the first is listed, such as ral-train.

    Example: `sweep.axis` → `("ral-evaluate",)` for ral-train, `()` for ral-evaluate; `foo` → `()`
    """
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        prefix = ".".join(parts[:count])
        if not is_known(prefix, kind):
            found: dict[type[CommandConfig], str] = {}
            for command, other in COMMANDS.items():
                if is_known(prefix, other) and not issubclass(other, tuple(found)):
                    found[other] = command
            return tuple(found.values())
    return ()


def read_by(kind: type[CommandConfig], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the composed values without those that only other commands read.

    Keys that no command knows stay, and are refused later: somebody has written them.
    """
    found = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if not other_readers(path, kind):
            found[key] = read_by(kind, value, f"{path}.") if isinstance(value, Mapping) else value
    return found


def takes_list(key: str, kind: type[BaseModel]) -> bool:
    """Return whether the key holds a list under some choice of the groups."""
    return any(_filled(path, key) == key and _has_tuple(field.annotation) for path, field in declared_fields(kind))


def meant(key: str, known: Collection[str]) -> list[str]:
    """Return the known keys that a wrong one most likely stands for, the closest first: at most three, often none.

    Example: `algorithm.stepz` → `algorithm.steps`, `learner.lr` → `learner.learning_rate`, `wandb` → `logging.wandb`
    """
    filled = sorted({_filled(one, key) for one in known} - {key})
    parent, leaf = _parent(key), _leaf(key)
    siblings = [one for one in filled if _parent(one) == parent]
    level = [one for one in filled if one.count(".") == key.count(".")]

    def close(word: str, others: Iterable[str], cutoff: float) -> list[str]:
        return difflib.get_close_matches(word, sorted(set(others)), 1, cutoff) if len(leaf) >= _SHORTEST else []

    alike_here, alike_anywhere = close(leaf, map(_leaf, siblings), 0.7), close(leaf, map(_leaf, filled), 0.8)
    rules = (
        close(key, level, 0.85),
        [one for one in siblings if _is_short_for(leaf, _leaf(one)) or f"{leaf}s" == _leaf(one)],
        [one for one in filled if _leaf(one) == leaf],
        [one for one in siblings if _leaf(one) in alike_here],
        [one for one in filled if _is_short_for(leaf, _leaf(one))],
        [one for one in filled if _leaf(one) in alike_anywhere],
    )
    found = next(filter(None, rules), [])
    return sorted(found, key=lambda one: -difflib.SequenceMatcher(None, key, one).ratio())[:_MOST]


def did_you_mean(key: str, known: Collection[str], value: str | None = None) -> str:
    """`did you mean algorithm.steps=5?`, `use NEW instead` for a renamed key, or nothing."""
    if key in RENAMED:
        return f"use {RENAMED[key]} instead"
    after = "" if value is None else f"={value}"
    found = [f"{one}{after}" for one in meant(key, known)]
    return f"did you mean {', '.join(found[:-1])}{' or ' if found[1:] else ''}{found[-1]}?" if found else ""


def _has_tuple(annotation: Any) -> bool:
    """Return whether an annotation is a tuple or offers one, as in `Literal["all"] | tuple[int, ...]`."""
    return get_origin(annotation) is tuple or any(map(_has_tuple, get_args(annotation)))


def _models(annotation: Any, star: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """Yield the configuration classes in an annotation, and whether each is the value of a dictionary."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, star
    else:
        for part in get_args(annotation):
            yield from _models(part, star or get_origin(annotation) is dict)


def _filled(known: str, key: str) -> str:
    """`data.sources.*.path` with the name that `key` has at that place."""
    if ANY not in known:
        return known
    given = key.split(".")
    parts = known.split(".")
    return ".".join(given[i] if part == ANY and i < len(given) else part for i, part in enumerate(parts))


def _parent(key: str) -> str:
    return re.sub(r"[./]?[^./]*$", "", key)


def _leaf(key: str) -> str:
    return re.split(r"[./]", key)[-1]


def _is_short_for(short: str, name: str) -> bool:
    """`lr` for `learning_rate`."""
    words = name.split("_")
    return len(words) > 1 and short == "".join(word[:1] for word in words)
