"""Defaults live in YAML only, and YAML and classes know the same keys. Files and classes are discovered."""

import importlib
import pkgutil
import typing
from pathlib import Path
from typing import Any

import pytest

from ral_system import conf
from ral_system import config as package
from ral_system.config.base import Group
from ral_system.config.commands import COMMANDS, CommandConfig, SynthesizeConfig
from ral_system.config.known import read_by
from ral_system.config.validate import parse_config
from ral_system.errors import ConfigError

ROOT = Path(conf.__file__).parent
OPTIONS = sorted((f.parent.name, f.stem) for f in ROOT.glob("*/*.yaml") if f.parent.name != "experiment")
OF_GROUP = [[f"{name}={option}" for name, option in OPTIONS if name == group] for group in dict(OPTIONS)]
CHOICES = [[options[i % len(options)] for options in OF_GROUP] for i in range(max(map(len, OF_GROUP)))]
"""An option of each group at a time, which together are all: a composition takes 0.2 s."""
EXPERIMENTS = sorted(f.stem for f in (ROOT / "experiment").glob("*.yaml"))
MODULES = [importlib.import_module(f"ral_system.config.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
CLASSES = [
    c
    for module in MODULES
    for c in vars(module).values()
    if isinstance(c, type) and issubclass(c, Group) and c is not Group and c.__module__ == module.__name__
]
KINDS = tuple(dict.fromkeys(COMMANDS.values()))
TAGS = ("name", "engine", "kind")
"""Fields by which one class of several is chosen."""


def group_class(annotation: Any, chosen: dict[str, Any] | None = None) -> type[Group] | None:
    """The Group in a field's type, also behind `| None`; of a choice of several, the one with that name or engine."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Group):
            tags = [(chosen or {}).get(key) for key in TAGS if key in candidate.model_fields]
            types = [candidate.model_fields[key].annotation for key in TAGS if key in candidate.model_fields]
            if all(tag is None or tag in (typing.get_args(of) or (tag,)) for tag, of in zip(tags, types, strict=True)):
                return candidate
    return None


def differences(container: Any, model: type[Group], path: str = "") -> list[str]:
    """Keys that only one side has, with their full path."""
    yaml_keys, fields = set(container), set(model.model_fields)
    found = [f"{path}{key}: in YAML only" for key in yaml_keys - fields]
    found += [f"{path}{key}: in the class only" for key in fields - yaml_keys]
    for key in yaml_keys & fields:
        value, annotation = container[key], model.model_fields[key].annotation
        if not isinstance(value, dict):
            continue
        if typing.get_origin(annotation) is dict:  # the user's own keys
            inner = group_class(typing.get_args(annotation)[1])
            values = {f"{key}.{name}": item for name, item in value.items()} if inner else {}
        else:
            inner, values = group_class(annotation, value), {key: value}
        for name, item in values.items() if inner else ():
            found += differences(item, inner, f"{path}{name}.")
    return found


def test_every_group_has_a_folder_and_every_folder_a_group() -> None:
    fields = [field for kind in KINDS for field in kind.model_fields.items()]
    groups = {name for name, field in fields if group_class(field.annotation)}
    assert {group for group, _ in OPTIONS} == groups
    assert EXPERIMENTS


def unlike_classes(container: dict[str, Any]) -> list[str]:
    """Keys that only the classes have, or only YAML, for some command; what no command reads counts for all."""
    return [line for kind in KINDS for line in differences(read_by(kind, container), kind)]


def test_the_defaults_and_the_classes_have_the_same_keys(compose_container) -> None:
    assert unlike_classes(compose_container(())) == []


@pytest.mark.parametrize("choices", CHOICES)
def test_every_option_has_the_keys_of_its_class(compose_container, choices: list[str]) -> None:
    assert unlike_classes(compose_container(choices)) == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_legal_for_every_command(compose_container, name: str) -> None:
    container = compose_container([f"experiment={name}"])
    assert unlike_classes(container) == []
    for kind in KINDS:
        if kind is SynthesizeConfig and (data := container["data"]["name"]) != "visual_search":
            with pytest.raises(ConfigError, match=rf"^data\.name={data}: .* data=visual_search; choose it$"):
                parse_config(read_by(kind, container), kind)
        else:
            parse_config(read_by(kind, container), kind)


@pytest.mark.parametrize("overrides", [(), ("cluster=local", "rollout=hf", "learner=torch")])
@pytest.mark.parametrize("kind", KINDS)
def test_the_defaults_are_legal(compose_container, kind: type[CommandConfig], overrides: tuple[str, ...]) -> None:
    parse_config(read_by(kind, compose_container(overrides)), kind)


@pytest.mark.parametrize("model", CLASSES, ids=lambda c: c.__name__)
def test_no_default_is_in_code(model: type[Group]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.is_required()] == []


@pytest.mark.parametrize("model", CLASSES, ids=lambda c: c.__name__)
def test_every_class_is_frozen_documented_and_closed(model: type[Group]) -> None:
    assert model.model_config["frozen"] is True
    assert model.model_config["extra"] == "forbid"
    assert model.__doc__
