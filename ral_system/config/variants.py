"""Groups that are one of several classes with different keys, and which class has which key."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from ral_system import conf
from ral_system.config.known import declared_fields, is_known, known_keys, models_in
from ral_system.errors import ConfigError
from ral_system.registry import POLICY_LOSSES

_LOSS = "algorithm.policy_loss"
"""The group to which packages add classes."""
CHOSEN_AS_GROUPS = {
    "algorithm.policy_loss": "a loss",
    "algorithm.attention.objective": "an objective",
    "algorithm.perception": "an objective",
}
"""Groups inside others, and the kind of thing that each chooses."""
GIVEN_WHOLE = {
    "learner.lora": "'learner.lora={rank: 16, alpha: 32, targets: [q_proj, k_proj, v_proj, o_proj], vision: false}'",
}
"""Groups that are null by default, and how they are given."""


@dataclass(frozen=True, slots=True)
class Variants:
    """A group and the classes that it may be."""

    path: str
    """The group's key: `learner`."""
    tag: str
    """The field that says which class it is: `engine`."""
    classes: dict[str, type[BaseModel]]
    """The classes by the value of that field: `torch`, `deepspeed`."""
    added: dict[str, type[BaseModel]] = field(default_factory=dict)
    """The classes that installed packages add, likewise."""

    def choice_of(self, names: Iterable[str]) -> str:
        """Return the override for one of these classes: `learner=deepspeed`, `algorithm/policy_loss=clip or gspo`."""
        group = self.path.replace(".", "/")
        there = sorted(file.stem for file in (Path(conf.__file__).parent / group).glob("*.yaml"))
        options = [option for name in names for option in ([name] if name in self.added else _options(name, there))]
        return f"{group}={' or '.join(filter(None, (', '.join(options[:-1]), options[-1])))}"


@cache
def variants(kind: type[BaseModel]) -> tuple[Variants, ...]:
    """Return the groups of a configuration that are one of several classes."""
    return tuple(
        Variants(path, tag, {get_args(model.model_fields[tag].annotation)[0]: model for model in models_in(info)})
        for path, info in declared_fields(kind)
        if isinstance(tag := info.discriminator, str)
    )


def variants_of(key: str, kind: type[BaseModel]) -> Variants | None:
    """Return the group that a key is in, if it is one of several classes. Imports the packages that add to it."""
    group = next((group for group in variants(kind) if key.startswith(f"{group.path}.")), None)
    return replace(group, added=_added_losses()) if group is not None and group.path == _LOSS else group


def keys_to_suggest(kind: type[BaseModel]) -> frozenset[str]:
    """Return the known keys and those of installed packages, which are imported."""
    found = known_keys(kind)
    for model in _added_losses().values() if _LOSS in found else ():
        found |= {f"{_LOSS}.{key}" for key in known_keys(model)}
    return found


def which_has(key: str, kind: type[BaseModel]) -> str:
    """`learner=deepspeed, which has it`; nothing for a key that no class of its group has.

    Example: `learner.zero_stage` → `learner=deepspeed, which has it`, `learner.zero_stagee` → ``
    """
    if (group := variants_of(key, kind)) is None:
        return ""
    inner = key.removeprefix(f"{group.path}.")
    having = [name for name, model in (group.classes | group.added).items() if is_known(inner, model)]
    return f"{group.choice_of(having)}, which has it" if having else ""


def _added_losses() -> dict[str, type[BaseModel]]:
    found = {}
    for name in POLICY_LOSSES.names:
        if not POLICY_LOSSES.is_built_in(name):
            with suppress(ConfigError):  # what cannot be imported is refused when it is chosen
                found[name] = POLICY_LOSSES.get(name).settings
    return found


def _options(name: str, there: list[str]) -> list[str]:
    """Return the existing options that choose a class: the one with its name, or else those that begin with it."""
    return [name] if name in there else [option for option in there if option.startswith(f"{name}_")] or [name]
