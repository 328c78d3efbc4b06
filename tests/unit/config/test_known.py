"""Known keys, and what a mistyped one is taken for."""

from collections.abc import Callable

import pytest

from ral_system.config.base import Resumable, ResumableSynthesis
from ral_system.config.commands import COMMANDS, CommandConfig, EvaluateConfig, SynthesizeConfig, TrainConfig
from ral_system.config.known import (
    RENAMED,
    declared_keys,
    did_you_mean,
    is_known,
    known_keys,
    meant,
    other_readers,
    read_by,
    takes_list,
)
from ral_system.config.validate import parse_config
from ral_system.errors import ConfigError
from tests.composed import compose_config

KEYS = known_keys(TrainConfig)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("algorithm.stepz", ["algorithm.steps"]),
        ("algoritm", ["algorithm"]),
        ("algorithm.attention.wieght", ["algorithm.attention.weight"]),
        ("learner.lr", ["learner.learning_rate"]),
        ("algorithm.lr", ["learner.learning_rate", "perceive.learning_rate", "sft.learning_rate"]),
        ("wandb", ["logging.wandb"]),
        ("steps", ["algorithm.steps"]),
        ("sft.batchsize", ["sft.batch"]),
        ("data.sources.mine.columns.questin", ["data.sources.mine.columns.question"]),
        ("algorithm.policy_loss.delte", ["algorithm.policy_loss.delta"]),  # of another loss than the default
        ("trainer.total_epochs", []),
        ("evaluation.question", ["evaluation.questions"]),
        ("learner.beta", ["learner.betas"]),
        ("rollout.n", []),
        ("foo", []),
    ],
)
def test_what_a_wrong_key_is_taken_for(key: str, found: list[str]) -> None:
    assert not is_known(key, TrainConfig)
    assert meant(key, KEYS) == found


def test_every_key_of_a_configuration_is_known(make_config: Callable[..., TrainConfig]) -> None:
    def keys(values: dict, prefix: str = "") -> list[str]:
        inner = [
            key for name, value in values.items() if isinstance(value, dict) for key in keys(value, f"{prefix}{name}.")
        ]
        return [f"{prefix}{name}" for name in values] + inner

    for overrides in ((), ("data=video_search", "algorithm/policy_loss=dppo_top_k_kl")):
        found = keys(make_config(*overrides).model_dump())
        assert len(found) > 150
        assert [key for key in found if not is_known(key, TrainConfig)] == []
    long_names = sorted(key for key in KEYS if len(key.rpartition(".")[2]) > 6)
    assert all(meant(f"{key}x", KEYS) for key in long_names[::10])


def test_a_renamed_key_is_named_by_its_new_name() -> None:
    assert did_you_mean("logging.rollouts_per_step", KEYS, "8") == "use logging.groups_per_step instead"
    assert set(RENAMED.values()) <= KEYS
    assert not set(RENAMED) & KEYS


@pytest.mark.parametrize(
    ("key", "takes"),
    [
        ("stages", True),
        ("data.grid", True),  # of some choices of data
        ("intervention.layers", True),  # or a word
        ("seed", False),
        ("learner", False),  # has lists inside
        ("algorithm", False),
        ("nope", False),
    ],
)
def test_which_keys_take_a_list(key: str, takes: bool) -> None:
    assert any(takes_list(key, kind) for kind in COMMANDS.values()) == takes


def test_a_suggestion_can_be_typed() -> None:
    assert did_you_mean("wandb", KEYS, "offline") == "did you mean logging.wandb=offline?"
    assert did_you_mean("foo", KEYS, "1") == ""
    assert did_you_mean("lr", KEYS).startswith("did you mean sft.learning_rate, learner.learning_rate or ")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "my run"}, "name='my run': a run's name has letters, digits, '_', '.' and '-' only; set name=my_run"),
        ({"name": ".x"}, "; set name=x"),
        ({"name": "-é"}, "; set name=_"),
        ({"wandb": "offline"}, "wandb: unknown key; remove it; did you mean logging.wandb?"),
        ({"grid": 3}, "grid: unknown key; remove it; did you mean data.grid?"),
    ],
)
def test_what_is_refused_says_what_to_write(make_config: Callable[..., TrainConfig], change: dict, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(make_config().model_dump() | change, TrainConfig)
    assert says in str(refused.value)


def test_marks_are_found_in_fields_groups_and_the_chosen_classes() -> None:
    sources = ("data=video_r1", "data.sources.main.path=rows.json", "stages=[rl]", "model.path=m")
    found = declared_keys(compose_config("rollout=vllm", *sources), Resumable)
    may_change = {path for path, may in found.items() if may}
    assert {"resume", "cluster", "sft.max_steps", "rollout.log_prob_gate", "rollout.memory_gib"} <= may_change
    assert {"data.workers", "data.timeout_s"} <= may_change
    others = {"seed", "data.seed", "data.sources.main.columns.question", "cluster.kind", "rollout.temperature"}
    assert others <= found.keys() - may_change
    assert "data.grid" not in found  # of other data
    synthesis = declared_keys(compose_config(kind=SynthesizeConfig), ResumableSynthesis)
    assert synthesis["data.train_records"] and synthesis["synthesis.reasoner.endpoint"] and not synthesis["data.seed"]


@pytest.mark.parametrize(
    ("kind", "key", "readers"),
    [
        (TrainConfig, "sweep.axis", ["ral-evaluate"]),
        (TrainConfig, "sweep.nonsense", ["ral-evaluate"]),  # the group says it
        (TrainConfig, "evaluation.samples", ["ral-evaluate"]),
        (TrainConfig, "evaluation.nonsense", []),
        (TrainConfig, "data.sources.main.path", []),
        (EvaluateConfig, "algorithm", []),  # it has the response format
        (EvaluateConfig, "algorithm.policy_loss", ["ral-train"]),
        (EvaluateConfig, "sft.batch", ["ral-train"]),
        (SynthesizeConfig, "start_model", ["ral-train", "ral-evaluate", "ral-data"]),
        (SynthesizeConfig, "experiment", []),
    ],
)
def test_who_else_reads_a_key(kind: type[CommandConfig], key: str, readers: list[str]) -> None:
    assert list(other_readers(key, kind)) == readers


def test_a_command_keeps_its_own_keys_and_those_of_nobody() -> None:
    data = {"sources": {"main": {"path": "rows"}}, "instructions": {"sweep": "think"}}
    values = {"data": data, "sweep": {"axis": None}, "evaluation": {"questions": 1, "samples": 2}, "foo": {"bar": 1}}
    assert read_by(TrainConfig, values) == {"data": data, "evaluation": {"questions": 1}, "foo": {"bar": 1}}
    assert read_by(EvaluateConfig, values) == values


def test_a_short_word_without_its_s_is_recognised() -> None:
    known = known_keys(SynthesizeConfig)
    assert meant("synthesis.row", known) == ["synthesis.rows"]
    assert meant("synthesis.ro", known) == []
