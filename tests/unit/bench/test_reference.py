"""docs/reference.md has every field of the configuration, with the defaults of today."""

import re

import pytest

from bench.reference import TARGET, reference
from ral_system.config.commands import COMMANDS
from ral_system.config.known import ANY, known_keys
from ral_system.registry import VERIFIERS


@pytest.fixture(scope="module")
def text() -> str:
    return TARGET.read_text(encoding="utf-8")


def test_the_file_is_up_to_date(text: str) -> None:
    assert text == reference(), "run python -m bench.reference"


def test_a_new_implementation_does_not_change_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(VERIFIERS), "_built_in", {"another": "nowhere:at_all"})
    assert text == reference()


def test_every_field_is_there(text: str) -> None:
    listed = {name.replace("NAME", ANY) for name in re.findall(r"^[|] `([^`]+)`", text, re.MULTILINE)}
    known = frozenset().union(*map(known_keys, COMMANDS.values()))
    groups = {key for key in known if any(other.startswith(f"{key}.") for other in known)}
    leaves = known - groups
    assert len(leaves) > 200
    assert sorted(leaves - listed) == []
    fields = {name for kind in COMMANDS.values() for name in kind.model_fields}
    assert {name for name in fields if f"\n## {name}\n" in text} == groups & fields


def test_who_reads_a_key_is_said(text: str) -> None:
    for line in (
        "| `seed` | integer ≥ 0 | `0` | ral-train, ral-evaluate and ral-data |",
        "| `runs_dir`\\* | text | `runs` | every command |",
        "| `evaluation.samples` | integer > 0 | `1` | Answers",
        "| `rollout.workers`\\* | integer > 0 | `1` | ral-train |",
    ):
        assert line in text
    (evaluate,) = re.findall(r"\n### evaluation\n\n(.*?)\n\n[|]", text, re.DOTALL)
    assert evaluate.endswith("Read by ral-evaluate.")


def test_defaults_bounds_and_marks_are_those_of_the_field(text: str) -> None:
    for line in (
        "| `learner.learning_rate` | number ≥ 0 | `5e-05` |",
        "| `algorithm.steps`\\* | integer > 0 | `40` |",
        "| `rollout.tensor_parallel`\\* | integer > 0 | `1` |",
        "| `algorithm.attention.anchor` | `old`, `reference`, `ema` | `old` |",
        "| `algorithm.attention.divergence` | a divergence | `jsd` |",
        "| `rollout.weight_transfer`\\* | a weight transfer or `null` | `null` |",
        "| `reward.kinds` | a verifier by name | `{}` |",
    ):
        assert line in text
