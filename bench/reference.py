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
from ral_system.config.run import RunConfig

TARGET = Path(__file__).parents[1] / "docs" / "reference.md"
_HEAD = """# Configuration reference

Written by `python -m bench.reference`; do not edit. Every value can be set on the command line as `group.key=value`,
every group chosen as `group=option`. Defaults are those of the options that are composed without any override. An
asterisk marks what may change when a run is continued.
"""
_OTHERS = {  # choices of groups whose fields the defaults do not have
    "data": ("data=video_search", "data=files"),
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
    scalars = {n: f for n, f in RunConfig.model_fields.items() if not list(_models(f.annotation))}
    lines += ["", "## The run", "", *_table("", RunConfig, scalars, values)]
    for name, field in RunConfig.model_fields.items():
        if name not in scalars:
            composed = [values, *(_composed(override) for override in _OTHERS.get(name, ()))]
            lines += ["", f"## {name}", *_group(name, field, composed)]
    return "\n\n".join(lines[:2]) + "\n" + "\n".join(lines[2:]) + "\n"


def _group(path: str, field: FieldInfo, composed: list[dict[str, Any]], depth: int = 0) -> Iterator[str]:
    """Lines about a group: one table for each class that it may be, then its inner groups."""
    chosen = list(_models(field.annotation))
    for model in chosen:
        values: dict[str, Any] = next((v for v in (_at(c, path) for c in composed) if _fits(model, v)), {})
        title = f" ({_choice(model)})" if len(chosen) > 1 else ""
        if title or depth:
            yield from ("", f"{'#' * (3 + depth)} {path}{title}")
        yield from ("", textwrap.fill(" ".join((inspect.getdoc(model) or "").split()), 118), "")
        plain = {n: f for n, f in model.model_fields.items() if not list(_models(f.annotation))}
        if plain:
            yield from _table(path + ".", model, plain, values or {})
        for name, inner in model.model_fields.items():
            if name not in plain:
                star = ".NAME" if get_origin(inner.annotation) is dict else ""
                yield from _group(f"{path}.{name}{star}", inner, composed, min(depth + 1, 1))


def _table(prefix: str, model: type[BaseModel], fields: dict[str, FieldInfo], values: dict[str, Any]) -> Iterator[str]:
    docs = _docs(model)
    yield from ("| key | values | default | meaning |", "|---|---|---|---|")
    for name, field in fields.items():
        mark = "\\*" if any(isinstance(m, MayChange) for m in field.metadata) else ""
        default = f"`{_yaml(values[name])}`" if name in values else ""
        cells = [f"`{prefix}{name}`{mark}", _values(field.annotation, field.metadata), default, docs.get(name, "")]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _docs(model: type[BaseModel]) -> dict[str, str]:
    """The docstring below each field, of a class and its bases."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
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
            return ", ".join(f"`{name}`" for name in meta.registry.names) or f"names of {meta.registry.group}"
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
    return isinstance(values, dict) and values.keys() == model.model_fields.keys()


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
