"""Keys that only other commands read: refused on the command line, hidden from `--help` and `--cfg job`.

Hydra composes every group for every command, because an experiment describes a setup that several commands share, and
may choose or set any group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ral_system.config.commands import CommandConfig
from ral_system.config.known import other_readers, read_by
from ral_system.errors import ConfigError
from ral_system.launch.mistakes import command, fail

_SWEPT = "hydra.sweeper.params"


def refuse_foreign(overrides: Sequence[str], kind: type[CommandConfig], written: str = "") -> None:
    """Raise ConfigError for the first override of a key that other commands read and this one does not, and for swept
    values in a form that Hydra cannot read on the command line. `written` stands before them where they were found.
    """
    from hydra.errors import HydraException

    from ral_system.launch.hydra_internals import parsed

    try:
        found = parsed(overrides)
    except HydraException:
        return  # Hydra refuses it
    for override in found:
        if override.key_or_group.startswith(_SWEPT):
            raise ConfigError(f"{override.input_line}: {_SWEPT} is for files; here write -m and KEY=1,2 for each key")
        if override.is_hydra_override():
            continue
        key, value = (override.package or override.key_or_group).replace("/", "."), override.value()
        for inner in (key, *_inner_keys(key, value)):
            if readers := other_readers(inner, kind):
                given = override.input_line if inner == key else f"{inner} in {override.input_line}"
                raise ConfigError(f"{written}{given}: {command()} does not read it; {_does(readers)}; remove it")


def refuse_foreign_sweeps(kind: type[CommandConfig]) -> None:
    """Let a sweep end before its first job if a file lets it vary a key that the command does not read."""
    from ral_system.launch import hydra_internals

    def check(params: Mapping[str, Any]) -> None:
        try:
            refuse_foreign([f"{key}={value}" for key, value in params.items()], kind, f"{_SWEPT}.")
        except ConfigError as error:
            fail(error)

    hydra_internals.before_sweeps(check)


def show_only(kind: type[CommandConfig], *, resolve: bool) -> None:
    """Let Hydra's `--help` list the groups, and `--cfg job` the keys, that the command reads."""
    from ral_system.launch import hydra_internals

    hydra_internals.show_only(
        lambda values: read_by(kind, values),
        lambda group: not other_readers(group.replace("/", "."), kind),
        resolve=resolve,
    )


def _inner_keys(key: str, value: Any) -> Iterator[str]:
    """The keys of a value such as `evaluation={questions: 5}`."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{key}.{name}"
            yield from _inner_keys(f"{key}.{name}", inner)


def _does(readers: Sequence[str]) -> str:
    """Format `ral-evaluate does`, or `ral-evaluate and ral-data do`."""
    *others, last = readers
    return f"{', '.join(others)} and {last} do" if others else f"{last} does"
