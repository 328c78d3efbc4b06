"""Undocumented parts of other packages are used in one file for each, which says what it was checked against."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("package", "file"),
    [
        ("ray", "actors/ray_internals.py"),
        ("deepspeed", "ral_system/training/deepspeed_internals.py"),
        ("hydra-core", "launch/hydra_internals.py"),
    ],
)
def test_they_were_checked_against_the_version_that_is_pinned(package: str, file: str) -> None:
    checked = re.search(rf"Checked against {package} ([\d.]+)\.", (ROOT / file).read_text())
    for constraints in ("constraints-cpu.txt", "constraints-gpu.txt"):
        pinned = re.search(rf"^{package}==([\d.]+)$", (ROOT / constraints).read_text(), re.MULTILINE)
        assert checked and pinned and checked[1] == pinned[1]


def test_no_other_file_uses_them() -> None:
    private = re.compile(r"^\s*(from|import) (ray|hydra)\.(_\w+|\w+\._\w+)", re.MULTILINE)
    found = {
        str(path.resolve().relative_to(ROOT))
        for path in [*ROOT.glob("actors/**/*.py"), *ROOT.glob("launch/**/*.py"), *ROOT.glob("ral_system/**/*.py")]
        if private.search(path.read_text())
    }
    assert found == {"actors/ray_internals.py", "launch/hydra_internals.py"}
