"""Configurations as the commands make them from overrides, for tests."""

from __future__ import annotations

import functools
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ral_system import conf

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ral_system.config.run import RunConfig

CONF = Path(conf.__file__).parent


def compose_config(*overrides: str) -> RunConfig:
    """Hydra overrides → `RunConfig`, as entry points make it."""
    from ral_system.config.validate import parse_config
    from ral_system.launch.cli import plain_container

    return parse_config(plain_container(compose_container(*overrides)))


def compose_container(*overrides: str) -> dict[str, Any]:
    """Overrides → the plain container that entry points hand to `parse_config`.

    Choices of groups are composed by Hydra, once for all tests; values are then set as Hydra sets them. It takes 0.15 s
    to compose, and thousands of tests want a configuration.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    plain = all(not (o.is_add() or o.is_delete() or o.is_sweep_override() or o.package) for o in parsed)
    values = [o for o in parsed if plain and not (isinstance(o.value(), str) and (CONF / o.key_or_group).is_dir())]
    config = deepcopy(_composed(tuple(str(o.input_line) for o in parsed if o not in values)))
    for override in values:
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return container


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base=None):
        return compose("config", list(overrides))
