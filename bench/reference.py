"""`python -m bench.reference`: docs/reference.md, every field of the configuration with its default and meaning."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ral_system.config.base import MayChange, NameIn
from ral_system.config.commands import COMMANDS
from ral_system.config.known import ANY, is_known, known_keys

KINDS = tuple(dict.fromkeys(COMMANDS.values()))
TARGET = Path(__file__).parents[1] / "docs" / "reference.md"
_HEAD = """# Configuration reference

Written by `python -m bench.reference`; do not edit. Every value can be set on the command line as `group.key=value`,
every group chosen as `group=option`. Defaults are those of the options that are composed without any override. An
asterisk marks what may change when a run is continued. A command refuses a key that it does not read; "ral-train" here
stands for ral-perceive, ral-sft, ral-rl and ral-plan as well. What packages can add, such as a divergence or a
verifier, is chosen by name: `ral_system/registry.py` has our own, and `key=help` lists all that are installed.
"""
_OTHERS = {  # choices of groups whose fields the defaults do not have
    "data": ("data=video_search", "data=looking", "data=files"),
    "rollout": ("rollout=hf",),
    "learner": ("learner=torch",),
}


def main() -> None:
    """Write the file."""
    TARGET.write_text(reference(), encoding="utf-8")


def reference() -> str:
    """Return the text of docs/reference.md."""
    lines = [textwrap.fill(part, 118) if i else part for i, part in enumerate(_HEAD.strip().split("\n\n"))]
    values = _composed()
    fields = {name: field for kind in reversed(KINDS) for name, field in kind.model_fields.items()}
    scalars = {name: fields[name] for name in values if name in fields and not list(_models(fields[name].annotation))}
    lines += ["", "## The run", "", *_table("", _docs(*KINDS), scalars, values)]
    for name in values:
        if name in fields and name not in scalars:
            lines += ["", f"## {name}", *_section(name, values)]
    return "\n\n".join(lines[:2]) + "\n" + "\n".join(lines[2:]) + "\n"


def _section(name: str, values: dict[str, Any]) -> Iterator[str]:
    """Lines about a group as the first command reads it, then what only others read of it."""
    composed, listed = [values, *(_composed(override) for override in _OTHERS.get(name, ()))], frozenset[str]()
    for kind in KINDS:
        if name in kind.model_fields:
            yield from _group(name, kind.model_fields[name], composed, listed)
            listed |= known_keys(kind)


def _group(
    path: str, field: FieldInfo, composed: list[dict[str, Any]], listed: frozenset[str], depth: int = 0
) -> Iterator[str]:
    """Lines about a group: a table for each class that it may be, then its inner groups; without the keys `listed`."""
    chosen = list(_models(field.annotation))
    for model in chosen:
        values: dict[str, Any] = next((v for c in composed if _fits(model, v := _at(c, path))), {})
        plain = {n: f for n, f in model.model_fields.items() if not list(_models(f.annotation))}
        plain = {n: f for n, f in plain.items() if f"{path}.{n}".replace("NAME", ANY) not in listed}
        title = f" ({_choice(model)})" if len(chosen) > 1 else ""
        if plain and (title or depth or listed):
            yield from ("", f"{'#' * (3 + depth)} {path}{title}")
        if plain or not listed:
            yield from ("", textwrap.fill(" ".join((inspect.getdoc(model) or "").split()), 118), "")
        if plain:
            yield from _table(path + ".", _docs(model), plain, values)
        for name, inner in model.model_fields.items():
            if list(_models(inner.annotation)):
                star = ".NAME" if get_origin(inner.annotation) is dict else ""
                yield from _group(f"{path}.{name}{star}", inner, composed, listed, min(depth + 1, 1))


def _table(prefix: str, docs: dict[str, str], fields: dict[str, FieldInfo], values: dict[str, Any]) -> Iterator[str]:
    readers = {name: _readers(f"{prefix}{name}") for name in fields}
    alike = len(set(readers.values())) == 1
    if alike:
        yield from (f"Read by {next(iter(readers.values()))}.", "")
    columns = ("key", "values", "default", *(() if alike else ("read by",)), "meaning")
    yield from (f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
    for name, field in fields.items():
        mark = "\\*" if any(isinstance(m, MayChange) for m in field.metadata) else ""
        default = f"`{_yaml(values[name])}`" if name in values else ""
        cells = [f"`{prefix}{name}`{mark}", _values(field.annotation, field.metadata), default]
        cells += [*(() if alike else (readers[name],)), docs.get(name, "")]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _readers(key: str) -> str:
    """`ral-train and ral-evaluate`: the commands that read a key, ral-train for all whose class is or extends its."""
    readers = [kind for kind in KINDS if is_known(key, kind)]
    if len(readers) == len(KINDS):
        return "every command"
    first = {kind: command for command, kind in reversed(COMMANDS.items())}
    *others, last = [first[kind] for kind in readers if not any(base in readers for base in kind.__mro__[1:])]
    return f"{', '.join(others)} and {last}" if others else last


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


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _models(part)


def _choice(model: type[BaseModel]) -> str:
    """`engine=vllm`: what tells this class from the others of its group."""
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) is Literal and name in ("name", "engine"):
            return f"{name}={' or '.join(map(str, get_args(field.annotation)))}"
    return model.__name__


def _fits(model: type[BaseModel], values: Any) -> bool:
    """Return whether composed values include those of this class; other commands may read further ones."""
    if not isinstance(values, dict) or not values.keys() >= model.model_fields.keys():
        return False
    tags = {name: model.model_fields[name].annotation for name in ("name", "engine") if name in model.model_fields}
    return all(values[name] in get_args(tag) for name, tag in tags.items() if get_origin(tag) is Literal)


def _at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("'", "") if isinstance(value, list | dict) else str(value).replace("\n", " ")


def _composed(*overrides: str) -> dict[str, Any]:
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("ral_system.conf", version_base=None):
        found: Any = OmegaConf.to_container(compose("config", list(overrides)), resolve=False)
    return dict(found)


if __name__ == "__main__":
    main()
