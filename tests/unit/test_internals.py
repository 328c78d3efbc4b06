"""Undocumented parts of other packages are used in one file for each, which says what it was checked against."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    "ray": "actors/ray_internals.py",
    "deepspeed": "ral_system/training/deepspeed_internals.py",
    "hydra": "launch/hydra_internals.py",
}
DOCUMENTED = {
    "ray": {"ray", "ray.exceptions", "ray.util.placement_group", "ray.util.scheduling_strategies"},
    "deepspeed": {"deepspeed"},
    "hydra": {"hydra", "hydra.core.hydra_config", "hydra.errors", "hydra.types"},
}
"""Modules that every file may import which may import the package at all."""


@pytest.mark.parametrize("package", FILES)
def test_they_were_checked_against_the_version_that_is_pinned(package: str) -> None:
    name = {"hydra": "hydra-core"}.get(package, package)
    checked = re.search(rf"Checked against {name} ([\d.]+)\.", (ROOT / FILES[package]).read_text())
    for constraints in ("constraints-cpu.txt", "constraints-gpu.txt"):
        pinned = re.search(rf"^{name}==([\d.]+)$", (ROOT / constraints).read_text(), re.MULTILINE)
        assert checked and pinned and checked[1] == pinned[1]


def test_no_other_file_uses_them() -> None:
    sources = [path for folder in ("actors", "launch", "ral_system") for path in ROOT.glob(f"{folder}/**/*.py")]
    for package, file in FILES.items():
        found = {path for path in sources if undocumented(path.read_text(), package)}
        assert {str(path.resolve().relative_to(ROOT)) for path in found} == {file}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import deepspeed\ndeepspeed.initialize()", []),
        ("import deepspeed.comm", ["deepspeed.comm"]),
        ("def f():\n    from deepspeed.runtime.zero.utils import x", ["deepspeed.runtime.zero.utils"]),
        ("import deepspeed\nself._engine.optimizer._parts()", ["_parts"]),
        ("import deepspeed\nengine._step()", ["_step"]),
        ("engine._step()", []),  # of something else
        ("import deepspeed\nself._step(), cls._step(), super().__init__()", []),
        ("from ray._private import worker", []),
    ],
)
def test_what_counts_as_undocumented(source: str, found: list[str]) -> None:
    assert undocumented(source, "deepspeed") == found


def undocumented(source: str, package: str) -> list[str]:
    """Modules of the package that are not documented; in a file that imports it, private attributes of anything but
    the file's own objects.
    """
    nodes = list(ast.walk(ast.parse(source)))
    imported = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    ours = [name for name in imported if name.partition(".")[0] == package]
    private = [
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr) and not node.attr.endswith("_")
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    return [name for name in ours if name not in DOCUMENTED[package]] + (private if ours else [])
