"""`python -m bench.reference`: docs/reference.md, every field of the configuration with its default and meaning."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ral_system import conf
from ral_system.config.base import MayChange, NameIn
from ral_system.config.commands import COMMANDS
from ral_system.config.known import ANY, is_known, known_keys, models_in
from ral_system.config.variants import Variants, variants

KINDS = tuple(dict.fromkeys(COMMANDS.values()))
TARGET = Path(__file__).parents[1] / "docs" / "reference.md"
_HEAD = """# Configuration reference

Written by `python -m bench.reference`; do not edit. On the command line, `group.key=value` sets a value and
`group=option` chooses a group. Defaults are those without any override, or those of the choice that a table belongs to.

A key marked \\* may change when a run is continued, and one marked † when `ral-synthesize` continues. A command refuses
keys that it does not read. "ral-train" also stands for ral-perceive, ral-sft, ral-rl and ral-plan.

Packages can add implementations of some things, such as divergences and verifiers. They are chosen by name:
`ral_system/registry.py` lists ours, and the error for an unknown name lists all that are installed. "The
paper" is that of RAL (arXiv 2602.04884), or the one that the group names.
"""
_MARKS = {"training": "\\*", "synthesis": "†"}
_EXAMPLES = {  # groups that no default has: what to compose to see values of their fields
    "data.sources.NAME": ("data=files", "+data/source@data.sources.NAME=columns"),
    "learner.lora": ("experiment=ral_qwen2_5_vl_7b_1gpu",),
}
_TAGS = ("name", "engine", "kind")
"""Fields that tell the classes of a group from each other."""


def main() -> None:
    """Write the file."""
    TARGET.write_text(reference(), encoding="utf-8")


def reference() -> str:
    """Return the text of docs/reference.md."""
    title, *paragraphs = _HEAD.strip().split("\n\n")
    values = _composed()
    fields = {name: field for kind in reversed(KINDS) for name, field in kind.model_fields.items()}
    scalars = {name: fields[name] for name in values if name in fields and not models_in(fields[name])}
    head = "\n\n".join([title, *(textwrap.fill(part, 118) for part in paragraphs)])
    lines = ["", "## The run", "", *_table("", _docs(*KINDS), scalars, values)]
    for name in values:
        if name in fields and name not in scalars:
            lines += _section(name)
    return head + "\n" + "\n".join(lines) + "\n"


def _section(name: str) -> Iterator[str]:
    """Lines about a group as the first command reads it, then what only others read of it."""
    listed = frozenset[str]()
    for kind in KINDS:
        if name in kind.model_fields:
            command = _first_command(kind) if listed else ""
            yield from _group(name, kind.model_fields[name], listed, about=_about(kind, name), command=command)
            listed |= known_keys(kind)


def _group(
    path: str,
    field: FieldInfo,
    listed: frozenset[str],
    level: int = 2,
    mark: str = "",
    about: str = "",
    overrides: tuple[str, ...] = (),
    command: str = "",
) -> Iterator[str]:
    """Lines about a group: a table for each class that it may be, then its inner groups; without the keys `listed`."""
    classes, mark, overrides = models_in(field), mark or _mark(field), _EXAMPLES.get(path, overrides)
    if len(classes) == 1:
        heading = f"{'#' * (level + bool(command))} {path}{command and f' in {command}'}"
        yield from _class(path, classes[0], listed, heading, mark, overrides, about=about)
        return
    group = _unions()[path]
    shared = {
        name: inner for name, inner in classes[0].model_fields.items() if all(_has(c, name, inner) for c in classes)
    }
    parts: list[str] = []
    for name, model in zip(group.classes, classes, strict=True):
        heading = f"{'#' * (level + 1)} {path} ({group.tag}={name})"
        parts += _class(path, model, listed, heading, mark, (_preset(group, name),), shared)
    for name, inner in shared.items():
        parts += _group(f"{path}.{name}", inner, listed, level + 1, mark)
    if parts:
        yield from ("", f"{'#' * level} {path}", *(("", _wrapped(about)) if about else ()), *parts)


def _class(
    path: str,
    model: type[BaseModel],
    listed: frozenset[str],
    heading: str,
    mark: str,
    overrides: tuple[str, ...],
    elsewhere: Collection[str] = (),
    about: str = "",
) -> Iterator[str]:
    """Lines about one class of a group: what it is, its own fields, then its inner groups but those `elsewhere`."""
    level, docs = heading.index(" "), _docs(model)
    plain = {n: f for n, f in model.model_fields.items() if not models_in(f) or type(None) in get_args(f.annotation)}
    plain = {n: f for n, f in plain.items() if f"{path}.{n}".replace("NAME", ANY) not in listed}
    if plain or not listed:
        yield from ("", heading, "", _wrapped(f"{about} {inspect.getdoc(model)}"))
    if plain:
        if overrides:
            yield from ("", f"Defaults: those of `{' '.join(overrides)}`.")
        yield from ("", *_table(f"{path}.", docs, plain, _at(_composed(*overrides), path), mark))
    for name, inner in model.model_fields.items():
        if models_in(inner) and name not in elsewhere:
            star = ".NAME" if get_origin(inner.annotation) is dict else ""
            below = min(level + 1, 4)
            yield from _group(f"{path}.{name}{star}", inner, listed, below, mark, _about(model, name), overrides)


def _about(model: type[BaseModel], name: str) -> str:
    """The docstring of an inner group where its class does not say what it is for: it is one of several, or another
    group has the same class, or the user names groups of this class.
    """
    annotation = model.model_fields[name].annotation
    twins = [field.annotation for field in model.model_fields.values()].count(annotation) > 1
    several = len(models_in(model.model_fields[name])) > 1 or get_origin(annotation) is dict
    return _docs(model).get(name, "") if several or twins else ""


def _has(model: type[BaseModel], name: str, group: FieldInfo) -> bool:
    """Return whether a class has this inner group."""
    field = model.model_fields.get(name)
    return bool(models_in(group)) and field is not None and field.annotation == group.annotation


def _table(
    prefix: str, docs: dict[str, str], fields: dict[str, FieldInfo], values: dict[str, Any], mark: str = ""
) -> Iterator[str]:
    """Lines of a table of fields; `mark` is that of the group."""
    readers = {name: _readers(f"{prefix}{name}") for name in fields}
    alike = len(set(readers.values())) == 1
    if alike:
        yield from (f"Read by {next(iter(readers.values()))}.", "")
    columns = ("key", "values", "default", *(() if alike else ("read by",)), "meaning")
    yield from (f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
    for name, field in fields.items():
        cells = [f"`{prefix}{name}`{mark or _mark(field)}", _values(field.annotation, field.metadata)]
        cells += [_default(values[name]), *(() if alike else (readers[name],))]
        cells += [_chosen_by(prefix.rstrip("."), name, values[name]) or docs.get(name, "")]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _mark(field: FieldInfo) -> str:
    """Marks of a field or a group that may change when a folder is continued."""
    return "".join(_MARKS[meta.by] for meta in field.metadata if isinstance(meta, MayChange))


def _chosen_by(path: str, name: str, value: str) -> str:
    """Say how to set the field by which a group's class is chosen; empty for all other fields."""
    group = _unions().get(path)
    return f"Set by `{group.choice_of([value])}`." if group and group.tag == name else ""


@cache
def _unions() -> dict[str, Variants]:
    """The groups that are one of several classes, by key."""
    return {group.path: group for group in variants(KINDS[0])}


def _preset(group: Variants, name: str) -> str:
    """The override that chooses a class: the option of its name, or else the first one that extends no other."""
    folder = Path(conf.__file__).parent / group.path.replace(".", "/")
    named = [path for path in sorted(folder.glob("*.yaml")) if path.stem == name or path.stem.startswith(f"{name}_")]
    (*_, chosen) = sorted(
        named, key=lambda path: (path.stem == name, "defaults" not in yaml.safe_load(path.read_text()))
    )
    return f"{group.path.replace('.', '/')}={chosen.stem}"


def _readers(key: str) -> str:
    """`ral-train and ral-evaluate`: the commands that read a key, ral-train for all whose class is or extends its."""
    readers = [kind for kind in KINDS if is_known(key, kind)]
    if len(readers) == len(KINDS):
        return "every command"
    *others, last = [_first_command(kind) for kind in readers if not any(base in readers for base in kind.__mro__[1:])]
    return f"{', '.join(others)} and {last}" if others else last


def _first_command(kind: type[BaseModel]) -> str:
    return next(command for command, other in COMMANDS.items() if other is kind)


def _docs(*models: type[BaseModel]) -> dict[str, str]:
    """The docstring below each field, of classes and their bases; the first class counts most."""
    found: dict[str, str] = {}
    for cls in (cls for model in reversed(models) for cls in reversed(model.__mro__)):
        if not (issubclass(cls, BaseModel) and cls.__module__.startswith("ral_system")):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(node, ast.ClassDef)
        for field, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def _values(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _values(arguments[0], arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{_yaml(value)}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_values(part, metadata if part is not type(None) else ()) for part in arguments)
    if origin is tuple:
        return f"list of {_values(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "the keys below"
    if origin is dict:
        return f"{_values(arguments[1])} by name"
    if annotation is type(None):
        return "`null`"
    for meta in metadata:
        if isinstance(meta, NameIn):
            return f"a {meta.registry.what}"
    names = {int: "integer", float: "number", str: "text", bool: "`true`, `false`"}
    bounds = [_bound(m) for meta in metadata for m in getattr(meta, "metadata", [meta])]
    return " ".join([names.get(annotation, str(annotation)), ", ".join(filter(None, bounds))]).strip()


def _bound(meta: Any) -> str:
    for kind, sign, name in ((Gt, ">", "gt"), (Ge, "≥", "ge"), (Lt, "<", "lt"), (Le, "≤", "le")):
        if isinstance(meta, kind):
            return f"{sign} {getattr(meta, name):g}"
    return ""


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 118)


def _at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _default(value: Any) -> str:
    return {"???": "required", "": "empty"}.get(str(value), f"`{_yaml(value)}`")


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("'", "") if isinstance(value, list | dict) else str(value).replace("\n", " ")


@cache
def _composed(*overrides: str) -> dict[str, Any]:
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("ral_system.conf", version_base=None):
        found: Any = OmegaConf.to_container(compose("config", list(overrides)), resolve=False)
    return dict(found)


if __name__ == "__main__":
    main()
