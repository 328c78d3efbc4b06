"""Values without effect: refused, unless a file of `conf/` sets them.

YAML gives every field a value, so a parsed configuration does not tell which ones the user has set. A value that a
chosen option or experiment of `conf/` sets may be there without the user having set it; any other value is the user's
own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from ral_system import conf
from ral_system.config.base import Group


@dataclass(frozen=True, slots=True)
class Preset:
    """What one file of `conf/` sets of one group."""

    values: Mapping[str, Any]
    of_experiment: bool

    def may_be_chosen(self, group: Group, named: tuple[str, ...], *, whole: bool) -> bool:
        """Return whether the group may have its values from here: all that an option sets, or, unless `whole`, those
        of the fields named. Of an experiment a run commonly switches parts off, so they are enough.
        """
        compared = type(group).model_fields if whole and not self.of_experiment else named
        return all(_is(getattr(group, field), self.values[field]) for field in compared if field in self.values)


_ROOT = Path(conf.__file__).parent
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C takes 8 ms for conf/, the other 130


def without_effect(
    group: Group, path: str, because: str, remedy: str, *fields: str, whole: bool = True
) -> Iterator[str]:
    """Yield a line for each of the fields without effect that has neither its default nor the value of a preset.

    dtype=bfloat16 alone is not from the experiment that sets dtype=bfloat16 and max_tokens=12288, and
    form=laser_pays_length at weight 0 not from the option that sets it with a weight. With `whole=False` it would be:
    that is for a field that runs keep from an option while they change others.
    """
    presets = presets_of(group, path)
    own = [preset.values for preset in presets if preset.may_be_chosen(group, fields, whole=whole)]
    for field in fields:
        given = getattr(group, field)
        default = next(preset.values[field] for preset in presets if field in preset.values)
        if not _is(given, default) and not any(field in values for values in own):
            yield (
                f"{path}.{field}={_as_yaml(given)} has no effect with {because}; {remedy}, or set {field} to "
                f"{_as_yaml(default)}"
            )


def presets_of(group: Group, path: str) -> list[Preset]:
    """Return the values that files of `conf/` set in the group at `path`, the default first, with tuples for lists.

    For a group that is one of several classes, files that choose another class do not count.
    """
    chosen = {
        name: getattr(group, name)
        for name, info in type(group).model_fields.items()
        if get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1
    }.items()
    fitting = [preset for preset in _presets()[path] if chosen <= {**dict(chosen), **preset.values}.items()]
    return sorted(fitting, key=lambda preset: not chosen <= preset.values.items())  # those that only change others last


@cache
def _presets() -> dict[str, list[Preset]]:
    """Read the values that `conf/` sets, by the group's path: default options, then other options, then experiments."""
    composed = yaml.load((_ROOT / "config.yaml").read_text(encoding="utf-8"), _Loader)["defaults"]
    options = [(group, option) for one in composed if isinstance(one, dict) for group, option in one.items()]
    defaults = [_ROOT / group / f"{option}.yaml" for group, option in options]
    files = sorted(
        _ROOT.glob("*/**/*.yaml"), key=lambda file: (file not in defaults, _ROOT / "experiment" in file.parents, file)
    )
    found: dict[str, list[Preset]] = {}
    for file in files:
        _add(*_read(file), _ROOT / "experiment" in file.parents, found)
    return found


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    """Return the group that a file sets, named by its first line or else its folder, and the values that it sets,
    including those of files beside it that it extends.
    """
    text = file.read_text(encoding="utf-8")
    package = re.match(r"# @package (\S+)", text)
    path = package[1] if package else ".".join(file.relative_to(_ROOT).parent.parts)
    node = yaml.load(text, _Loader)
    for extended in reversed(node.pop("defaults", ())):
        if isinstance(extended, str) and (beside := file.parent / f"{extended}.yaml").is_file():
            node = _merged(_read(beside)[1], node)
    return path.replace("_global_", ""), node


def _merged(node: Any, over: Any) -> Any:
    if not isinstance(node, dict) or not isinstance(over, dict):
        return over
    return node | {key: _merged(node.get(key), value) for key, value in over.items()}


def _add(path: str, node: dict[str, Any], of_experiment: bool, found: dict[str, list[Preset]]) -> None:
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in node.items() if not isinstance(v, dict)}
    found.setdefault(path, []).append(Preset(plain, of_experiment))
    for key, value in node.items():
        if isinstance(value, dict):
            _add(f"{path}.{key}".removeprefix("."), value, of_experiment, found)


def _is(given: Any, written: Any) -> bool:
    """Return whether YAML's value becomes the given one; a list may be written as its only value."""
    return given in (written, (written,))


def _as_yaml(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return list(value) if isinstance(value, tuple) else value
