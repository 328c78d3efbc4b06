"""What this package uses of Hydra that Hydra does not document. Checked against hydra-core 1.3.8."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as Override
from hydra.core.plugins import Plugins

_SANITIZED, _GROUPS = Hydra.get_sanitized_cfg, Hydra.list_all_config_groups
_SWEEPER = Plugins.instantiate_sweeper


def arguments_parser() -> ArgumentParser:
    """The parser of Hydra's own command line."""
    return get_args_parser()


def parsed(overrides: Sequence[str], *, in_task: bool = False) -> list[Override]:
    """Parse overrides. In a task that Hydra runs, sweeps over groups by pattern (`glob(*)`) can be expanded as well.

    Raises HydraException for one that is not well-formed.
    """
    loader = GlobalHydra.instance().config_loader() if in_task else None
    return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


def job_count(overrides: Sequence[Any]) -> int:
    """Return the number of jobs that Hydra's own sweeper makes from parsed overrides."""
    return len(BasicSweeper.split_arguments(list(overrides), None)[0])


def before_sweeps(check: Callable[[Mapping[str, Any]], None]) -> None:
    """Call `check` with `hydra.sweeper.params`, of whatever sweeper, before a sweep begins."""

    def own_sweeper(self: Any, *, config: Any, **options: Any) -> Any:
        check(config.hydra.sweeper.get("params") or {})
        return _SWEEPER(self, config=config, **options)

    Plugins.instantiate_sweeper = own_sweeper  # type: ignore[method-assign]


def show_only(keys: Callable[[dict[str, Any]], dict[str, Any]], group: Callable[[str], bool], *, resolve: bool) -> None:
    """Let `--cfg job` print what `keys` leaves of a configuration, and `--help` list groups that `group` accepts."""
    from omegaconf import OmegaConf

    def own_keys(self: Any, cfg: Any, cfg_type: str) -> Any:
        found = _SANITIZED(self, cfg, cfg_type)
        if cfg_type != "job":
            return found
        values: Any = OmegaConf.to_container(found, resolve=resolve)
        return OmegaConf.create(keys(values))

    def own_groups(self: Any, parent: str = "") -> Sequence[str]:
        return list(filter(group, _GROUPS(self, parent)))

    Hydra.get_sanitized_cfg, Hydra.list_all_config_groups = own_keys, own_groups  # type: ignore[method-assign]
