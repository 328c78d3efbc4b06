"""Configurations as the commands make them from overrides, for tests."""

from __future__ import annotations

import functools
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ral_system import conf

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ral_system.config.commands import CommandConfig, TrainConfig

    Kind = TypeVar("Kind", bound=CommandConfig)

CONF = Path(conf.__file__).parent


@overload
def compose_config(*overrides: str) -> TrainConfig: ...


@overload
def compose_config(*overrides: str, kind: type[Kind]) -> Kind: ...


def compose_config(*overrides: str, kind: type[CommandConfig] | None = None) -> CommandConfig:
    """Hydra overrides → the configuration of a command, by default of `ral-train`, as entry points make it."""
    from ral_system.config.commands import TrainConfig
    from ral_system.config.known import read_by
    from ral_system.config.validate import parse_config

    kind = kind or TrainConfig
    return parse_config(read_by(kind, compose_container(*overrides)), kind)


def compose_container(*overrides: str) -> dict[str, Any]:
    """Overrides → the plain values of all groups, which entry points reduce to those of a command.

    Choices of groups are composed by Hydra, once for all tests; values are then set as Hydra sets them. It takes 0.15 s
    to compose, and thousands of tests want a configuration.
    """
    from omegaconf import OmegaConf

    from ral_system.launch.hydra_internals import parsed

    found = parsed(overrides)
    plain = all(not (o.is_add() or o.is_delete() or o.is_sweep_override() or o.package) for o in found)
    values = [o for o in found if plain and not (isinstance(o.value(), str) and (CONF / o.key_or_group).is_dir())]
    config = deepcopy(_composed(tuple(str(o.input_line) for o in found if o not in values)))
    for override in values:
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    container.pop("experiment", None)
    return container


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base=None):
        return compose("config", list(overrides))
