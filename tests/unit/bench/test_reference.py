"""docs/reference.md has every field of the configuration, with the defaults of today."""

import re

import pytest

from bench.reference import TARGET, reference
from ral_system.config.base import Resumable, ResumableSynthesis
from ral_system.config.commands import COMMANDS, SynthesizeConfig
from ral_system.config.known import ANY, declared_keys, known_keys
from ral_system.registry import VERIFIERS
from tests.composed import compose_config


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


def test_every_field_has_a_default_and_a_meaning(text: str) -> None:
    rows = [re.split(r" (?<!\\)[|] ", line.strip("| ")) for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 300
    assert [row[0] for row in rows if len(row) not in (4, 5) or not all(cell.strip() for cell in row)] == []


def test_tags_are_code(text: str) -> None:
    """Browsers do not show `<think>` outside of code."""
    assert re.findall(r"<\w+>", re.sub(r"`[^`]*`", "", text)) == []


def test_every_text_has_a_heading_of_its_own(text: str) -> None:
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    assert len(set(headings)) == len(headings)
    assert re.findall(r"[|]\n+[^|#\n].*", text) == [], "text below a table and without a heading"


def test_who_reads_a_key_is_said(text: str) -> None:
    for line in (
        "| `seed` | integer ≥ 0 | `0` | ral-train, ral-evaluate and ral-data |",
        "| `runs_dir`\\* | text | `runs` | every command |",
        "| `evaluation.samples` | integer > 0 | `1` | Number of answers",
        "| `rollout.workers`\\* | integer > 0 | `1` | ral-train |",
    ):
        assert line in text
    (evaluate,) = re.findall(r"\n### evaluation in ral-evaluate\n\n(.*?)\n\n[|]", text, re.DOTALL)
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


def test_defaults_of_a_choice_are_those_of_its_preset(text: str) -> None:
    for line in (
        "| `algorithm.perception.masked` | number > 0, ≤ 1 | `0.6` | Share",
        "| `algorithm.perception.masked` | number > 0, ≤ 1 | `0.5` | Share",
        "| `algorithm.policy_loss.delta` | number > 0 | `0.15` | Distance",
        "| `algorithm.policy_loss.clip_high` | number > 0 | `4.0` | Weights",
        "| `learner.world_size` | integer > 0 | `1` | ral-train |",
        "| `learner.world_size` | integer > 0 | `2` | ral-train |",
        "| `learner.lora` | the keys below or `null` | `null` |",
        "| `data.sources.NAME.path` | text | required |",
        "| `data.video.fps` | number > 0 | `1.0` |",
        "Set by `algorithm/policy_loss=dppo_binary_kl, dppo_binary_tv, dppo_top_k_kl or dppo_top_k_tv`.",
        "Defaults: those of `algorithm/policy_loss=dppo_binary_tv`.",
    ):
        assert line in text, line


def test_what_may_change_later_is_marked_also_inside_groups(text: str) -> None:
    sources = ("data=files", "+data/source@data.sources.NAME=columns", "data.sources.NAME.path=x")
    sources += ("data.sources.NAME.columns.question=q", "data.sources.NAME.columns.answer=a", "stages=[rl]")
    marked = {key: marks for key, marks in re.findall(r"^[|] `([^`]+)`(\S*) [|]", text, re.MULTILINE) if marks}
    of_training, of_synthesis = set(), set()
    for config, mark, found in (
        (compose_config(), Resumable, of_training),
        (compose_config(*sources), Resumable, of_training),
        (compose_config(kind=SynthesizeConfig), ResumableSynthesis, of_synthesis),
    ):
        declared = declared_keys(config, mark)
        above = {key for key, its in declared.items() if its}
        leaves = {key for key in declared if not any(other.startswith(f"{key}.") for other in declared)}
        found |= {key for key in leaves if any(key == one or key.startswith(f"{one}.") for one in above)}
    assert {"evaluation.every", "cluster.scorers", "alarms.entropy", "rollout.log_prob_gate.token"} <= of_training
    assert {key for key, marks in marked.items() if "*" in marks} == of_training
    assert {key for key, marks in marked.items() if "†" in marks} == of_synthesis
