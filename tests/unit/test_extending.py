"""docs/extending.md names every seam, every member that a package must define, and files that exist."""

import re
from pathlib import Path

import pytest

from ral_system.algorithms.divergences import Divergence
from ral_system.families.family import Family
from ral_system.registry import (
    BENCHMARKS,
    DIVERGENCES,
    FAMILIES,
    POLICY_LOSSES,
    REWARD_SIGNALS,
    VERIFIERS,
    WEIGHT_TRANSFERS,
)
from ral_system.weights.transfer.object_store import ObjectStore

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
CODE = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", GUIDE, flags=re.DOTALL)))
SEAMS = (BENCHMARKS, DIVERGENCES, FAMILIES, POLICY_LOSSES, REWARD_SIGNALS, VERIFIERS, WEIGHT_TRANSFERS)


def test_every_seam_is_named() -> None:
    assert {seam.group for seam in SEAMS} == {name for name in CODE if re.fullmatch(r"ral_system\.\w+s", name)}


@pytest.mark.parametrize(
    "members",
    [
        Family.__abstractmethods__ | {"model_types", "attention_classes"},
        {name for name in vars(ObjectStore) if not name.startswith("_")},
        set(Divergence.__slots__) - {"terms_and_slopes"} | {"terms_and_slopes(p, q)"},
    ],
    ids=["family", "transfer", "divergence"],
)
def test_every_member_to_define_is_named(members: set[str]) -> None:
    named = CODE | {name.split(" = ")[0] for name in CODE}
    assert members <= named


def test_every_file_exists() -> None:
    paths = {name for name in CODE if re.fullmatch(r"[\w/]+/[\w.]+\.(py|yaml|md)", name) and "NAME" not in name}
    assert len(paths) > 8
    assert [path for path in paths if not (ROOT / path).exists() and not (ROOT / "examples" / path).exists()] == []
