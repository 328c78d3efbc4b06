"""docs/reference.md has every field of the configuration, with the defaults of today."""

import re

import pytest

from bench.reference import TARGET, reference
from ral_system.config.known import ANY, known_keys
from ral_system.config.run import RunConfig


@pytest.fixture(scope="module")
def text() -> str:
    return TARGET.read_text(encoding="utf-8")


def test_the_file_is_up_to_date(text: str) -> None:
    assert text == reference(), "run python -m bench.reference"


def test_every_field_is_there(text: str) -> None:
    listed = {name.replace("NAME", ANY) for name in re.findall(r"^[|] `([^`]+)`", text, re.MULTILINE)}
    groups = {key for key in known_keys() if any(other.startswith(f"{key}.") for other in known_keys())}
    leaves = known_keys() - groups
    assert len(leaves) > 200
    assert sorted(leaves - listed) == []
    assert {name for name in RunConfig.model_fields if f"## {name}" in text} == groups & RunConfig.model_fields.keys()


def test_defaults_bounds_and_marks_are_those_of_the_field(text: str) -> None:
    for line in (
        "| `learner.learning_rate` | number ≥ 0 | `5e-05` |",
        "| `algorithm.steps`\\* | integer > 0 | `40` |",
        "| `rollout.tensor_parallel`\\* | integer > 0 | `1` |",
        "| `algorithm.attention.anchor` | `old`, `reference`, `ema` | `old` |",
    ):
        assert line in text
