"""Implementations by name: those of this package, and those that an installed package adds by an entry point."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

from ral_system.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Implementations of one seam.

    `group` is the entry point group, for example `ral_system.families`; `what` names one of them in messages;
    `built_in` maps names to `module:attribute`. A package adds its own under `[project.entry-points."<group>"]` in its
    pyproject.toml, with a line `name = "module:attribute"`. Nothing is imported before it is asked for.
    """

    def __init__(self, group: str, what: str, built_in: Mapping[str, str]) -> None:
        self._group, self._what, self._built_in = group, what, built_in

    @cached_property
    def _targets(self) -> dict[str, str]:
        return {entry.name: entry.value for entry in entry_points(group=self._group)} | dict(self._built_in)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._targets))

    def check(self, field: str, name: str) -> None:
        """Raise ConfigError that names the field and lists the known names, unless `name` is one. Imports nothing."""
        if name not in self._targets:
            raise ConfigError(f"{field}={name}: unknown {self._what}; choose one of {', '.join(self.names)}")

    def get(self, name: str) -> T:
        """The implementation called `name`. Raises ConfigError that lists the known ones, or says why it fails."""
        if name not in self._targets:
            raise ConfigError(f"unknown {self._what} {name!r}; choose one of {', '.join(self.names)}")
        module, _, attribute = self._targets[name].partition(":")
        try:
            return cast(T, getattr(import_module(module), attribute))
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"{self._what} {name!r} is registered as {self._targets[name]}, which cannot be imported: {error}"
            ) from error

    def all(self) -> dict[str, Any]:
        """Every implementation by name."""
        return {name: self.get(name) for name in self.names}
