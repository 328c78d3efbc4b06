"""Every mistake is refused with the field, its value and the remedy. Paths are discovered from the defaults."""

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest

from ral_system.config import validate
from ral_system.config.base import NameIn
from ral_system.config.commands import COMMANDS, CommandConfig, EvaluateConfig, TrainConfig
from ral_system.config.known import declared_fields, other_readers, read_by
from ral_system.config.validate import parse_config
from ral_system.errors import ConfigError
from ral_system.registry import Registry
from tests.composed import compose_config
from tests.unit.config.illegal_algorithms import ALGORITHMS
from tests.unit.config.illegal_inert import INERT
from tests.unit.config.illegal_looking import LOOKING_TASKS
from tests.unit.config.illegal_perception import PERCEPTION
from tests.unit.config.illegal_placement import PLACEMENT
from tests.unit.config.illegal_settings import SETTINGS
from tests.unit.config.whole_groups import HF

ILLEGAL = ALGORITHMS | PERCEPTION | SETTINGS | INERT | PLACEMENT | LOOKING_TASKS
KINDS = tuple(dict.fromkeys(COMMANDS.values()))
OPEN = ("reward.kinds", "reward.signals", "sweep.models")
"""Groups with keys that the user chooses."""


@pytest.fixture(scope="module")
def defaults(compose_container) -> dict[str, Any]:
    return compose_container(())


def parsed(container: dict[str, Any], kind: type[CommandConfig] = TrainConfig) -> Any:
    return parse_config(read_by(kind, container), kind)


def changed(container: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(container)
    for path, value in overrides.items():
        *parents, leaf = path.split(".")
        node = result
        for parent in parents:
            node = node[parent]
        assert leaf in node, f"{path} is no field any more"
        node[leaf] = value
    return result


def leaves(node: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield path + key


def groups(node: dict[str, Any], path: str = "") -> Iterator[str]:
    yield path
    for key, value in node.items():
        if isinstance(value, dict) and path + key not in OPEN:
            yield from groups(value, f"{path}{key}.")


@pytest.mark.parametrize("case", ILLEGAL)
def test_illegal_combinations_name_field_value_and_remedy(defaults, case: str) -> None:
    overrides, fragments = ILLEGAL[case]
    readers = (kind for kind in KINDS if not any(other_readers(key, kind) for key in overrides))
    with pytest.raises(ConfigError) as error:
        parsed(changed(defaults, overrides), next(readers))
    message = str(error.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("stage", ["perceive", "sft", "rl"])
def test_batches_are_compared_with_the_ranks_in_stages_that_run(defaults, stage: str) -> None:
    """The step of rl has updates of 4 samples, four of them."""
    small = {
        "perceive.batch": 4,
        "sft.batch": 4,
        "algorithm.prompts_per_step": 4,
        "algorithm.completions_per_prompt": 4,
    }
    container = changed(defaults, small | {"learner.world_size": 5, "stages": [stage]})
    with pytest.raises(ConfigError) as error:
        parsed(container)
    (problem,) = error.value.args
    assert problem.startswith("an update of 16 / 4 samples" if stage == "rl" else f"{stage}.batch=4 is smaller")


def test_all_problems_are_reported_at_once(defaults) -> None:
    overrides = {"reward.correctness": 0.0, "reward.format": 0.0, "perceive.batch": 1, "learner.world_size": 2}
    with pytest.raises(ConfigError, match=r"perceive\.batch=1.*; .*reward\.correctness"):
        parsed(changed(defaults, overrides))


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_key_is_named_with_its_full_path_in_every_group(defaults, kind: type[CommandConfig]) -> None:
    for path in groups(read_by(kind, defaults)):
        container = copy.deepcopy(defaults)
        node = container
        for part in path.split(".")[:-1]:
            node = node[part]
        node["no_such_key"] = 1
        with pytest.raises(ConfigError, match=f"^{re.escape(path)}no_such_key: unknown key; remove it"):
            parsed(container, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_type_is_named_with_path_and_value_in_every_field(defaults, kind: type[CommandConfig]) -> None:
    for path in leaves(read_by(kind, defaults)):
        with pytest.raises(ConfigError) as error:
            parsed(changed(defaults, {path: ["nonsense"]}), kind)
        assert str(error.value).startswith(path)
        assert "nonsense" in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_field_is_named_in_every_place(defaults, kind: type[CommandConfig]) -> None:
    for path in leaves(read_by(kind, defaults)):
        container = copy.deepcopy(defaults)
        node = container
        *parents, leaf = path.split(".")
        for part in parents:
            node = node[part]
        del node[leaf]
        with pytest.raises(ConfigError, match=f"^{re.escape(path)}: missing; set it"):
            parsed(container, kind)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("algorithm.steps", -1, "-1: out of range; set it above 0"),
        ("algorithm.completions_per_prompt", 1, "1: out of range; set it to 2 or more"),
        ("algorithm.attention.ema_decay", 1.0, "1.0: out of range; set it below 1"),
        ("data.glance_share", 1.5, "1.5: out of range; set it to 1 or less"),
        ("alarms.entropy", 2, "2: out of range; set it to 1 or less, or null"),
        ("learner.world_size", "two", "'two': not an integer; write one in digits, such as 2"),
        ("learner.world_size", 2.5, "2.5: not an integer; write one in digits, such as 2"),
        ("learner.world_size", None, "null: not an integer; write one in digits, such as 2"),
        ("learner.learning_rate", "fast", "'fast': not a number; write one in digits, such as 0.5"),
        ("learner.learning_rate", None, "null: not a number; write one in digits, such as 0.5"),
        ("rollout.stop_at_answer", "maybe", "'maybe': neither true nor false; set one of them"),
        ("rollout.stop_at_answer", None, "null: neither true nor false; set one of them"),
        ("learner.betas", 0.9, "0.9: not a list; write one in brackets, [A,B]"),
        ("learner.betas", (0.9, 0.9, 0.9), "(0.9, 0.9, 0.9): too many values; give at most 2"),
        ("stages", [], "[]: too few values; give at least 1"),
        ("algorithm.deal", "turns", "'turns': no such choice; use 'groups' or 'samples'"),
        ("checkpoint", 3, "3: not a group of settings; set its keys one by one, checkpoint.KEY=VALUE"),
        (
            "runs_dir",
            True,
            "true: not text; write it in quotes, on a command line within those of the shell: \"runs_dir='TEXT'\"",
        ),
        (
            "algorithm.attention.layers",
            "first",
            "'first': no such choice; use 'last' or 'all', or a list in brackets, [A,B]",
        ),
        ("algorithm.attention.layers", ["x"], "'x': not an integer; write one in digits, such as 2"),
        ("learner.betas", (2, 0.9), "[2, 0.9], entry 2: out of range; set it to 1 or less"),
        ("stages", ["rl", "foo"], "['rl', 'foo'], entry 'foo': no such choice; use 'perceive', 'sft' or 'rl'"),
        (
            "learner.lora",
            True,
            "true: not a group of settings; give all of it, as in 'learner.lora={rank: 16, alpha: 32, targets: "
            "[q_proj, k_proj, v_proj, o_proj], vision: false}', or null",
        ),
    ],
)
def test_a_value_of_another_type_or_out_of_range_has_what_is_allowed(
    defaults, path: str, value: Any, says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(changed(defaults, {path: value}))
    assert str(error.value) == f"{path}={says}"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("reward.workers", 0),
        ("reward.timeout_s", 0.0),
        ("algorithm.completions_per_prompt", 1),
        ("algorithm.policy_loss.clip_low", 1.5),
        ("algorithm.attention.rows", "both"),
        ("learner.zero_stage", 4),
        ("name", "a/b"),
        ("name", ""),
        ("name", ".."),
        ("data.glance_share", 1.5),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_named(defaults, path: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(changed(defaults, {path: value}))
    assert f"{path}={value!r}: " in str(error.value)


def test_a_bfloat16_run_that_one_token_would_end_is_warned_of(defaults) -> None:
    strict = changed(
        defaults, {"learner.dtype": "bfloat16", "learner.zero_stage": 2, "rollout.log_prob_gate.token": 2.0}
    )
    (warning,) = validate.warnings(parsed(strict))
    assert warning.startswith("rollout.log_prob_gate.outliers=0 ends a bfloat16 run")
    assert validate.warnings(parsed(changed(strict, {"rollout.log_prob_gate.outliers": 1e-3}))) == []


BFLOAT16 = (
    *("cluster=ray", "learner=deepspeed", "learner.dtype=bfloat16", "learner.zero_stage=2"),
    "rollout.log_prob_gate={token: 2, outliers: 0.001, mean: 0.1, p999: 1}",
)
HELD, RECORDS = "algorithm.attention.target_gradient_share=0.2", "algorithm.attention.record_dtype=bfloat16"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (BFLOAT16, ("learner.dtype",)),
        ((RECORDS,), ("algorithm.attention.record_dtype",)),
        ((*BFLOAT16, RECORDS), ("learner.dtype", "algorithm.attention.record_dtype")),
    ],
)
def test_a_share_that_bfloat16_does_not_hold_is_warned_of(
    make_config: Callable[..., TrainConfig], options: tuple[str, ...], said: tuple[str, ...]
) -> None:
    (warning,) = validate.warnings(make_config("algorithm=ral", HELD, *options))
    assert "\n" not in warning
    assert warning.startswith(f"{HELD} with {' and '.join(f'{name}=bfloat16' for name in said)}: with ")
    assert warning.endswith(f", or set {' and '.join(f'{name}=float32' for name in said)}")


@pytest.mark.parametrize(
    "options",
    [
        ("algorithm=ral", HELD),
        ("algorithm=ral", RECORDS),
        ("algorithm=ral", "algorithm.attention.max_gradient_share=0.2", RECORDS),
        ("algorithm=ral", "algorithm.attention.anchor=reference", HELD, RECORDS),
        ("algorithm=ral", "algorithm.attention.anchor=ema", HELD, RECORDS),
        ("algorithm=attention_credit", HELD, RECORDS, *BFLOAT16),
        ("algorithm=sharpening", HELD, *BFLOAT16),
    ],
)
def test_a_share_that_is_held_or_not_asked_for_is_not_warned_of(
    make_config: Callable[..., TrainConfig], options: tuple[str, ...]
) -> None:
    assert validate.warnings(make_config(*options)) == []


def test_a_second_pass_gives_the_attention_term_a_gradient(defaults) -> None:
    one_update = {"algorithm.attention.weight": 0.5, "algorithm.updates_per_step": 1}
    assert parsed(changed(defaults, one_update | {"algorithm.passes_per_step": 2})).algorithm.updates_per_batch == 2


def test_stages_are_sorted_into_the_order_of_a_run(defaults) -> None:
    assert parsed(changed(defaults, {"stages": ["rl", "perceive"]})).stages == ("perceive", "rl")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            {"learner.engine": "torch"},
            "learner.engine=torch has no zero_stage, offload, sequence_parallel and collective_timeout_s; choose "
            "learner=torch as a group, or remove those keys (~learner.zero_stage)",
        ),
        (
            {"rollout": HF | {"engine": "vllm"}},
            "rollout.engine=vllm needs tensor_parallel, memory_gib and gpu_memory_utilization; choose rollout=vllm "
            "as a group",
        ),
        (
            {"data.name": "looking"},
            "data.name=looking has no grid, objects, digits and 2 more, and needs families and difficulty; choose "
            "data=looking as a group",
        ),
        (
            {"cluster.kind": "local"},
            "cluster.kind=local has no address, placement, scorers and 11 more; choose cluster=local as a group, or "
            "remove those keys (~cluster.address)",
        ),
        (
            {"learner.lora": {"rank": 16}},
            "learner.lora: without alpha, targets and vision; give all of it, as in 'learner.lora={rank: 16, alpha: 32",
        ),
    ],
)
def test_what_is_one_mistake_has_one_line(defaults, overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(changed(defaults, overrides))
    (line,) = caught.value.args
    assert line.startswith(says)


def test_the_first_problems_have_a_line_each_and_the_others_are_counted(defaults) -> None:
    wrong = {"seed": -1, "perceive.batch": 0, "sft.batch": 0, "algorithm.steps": 0, "checkpoint.every": -1}
    with pytest.raises(ConfigError) as caught:
        parsed(changed(defaults, wrong))
    assert len(caught.value.args) == 5
    assert caught.value.lines == (*caught.value.args[:3], "and 2 more; correct these first")
    assert pickle.loads(pickle.dumps(caught.value)).lines == caught.value.lines  # noqa: S301
    assert ConfigError("one", "two").lines == ("one", "two")


def test_the_result_cannot_be_changed(defaults) -> None:
    with pytest.raises(ValueError, match="frozen"):
        parsed(defaults).seed = 1


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"policy_loss.anchor": "old"}, "training collapse that way"),
        ({"kl.estimator": "k1"}, "does not hold the policy back"),
        (
            {"policy_loss": {"name": "reinforce", "ratio": False}},
            "updates_per_step=4, algorithm.passes_per_step=1 and algorithm.max_staleness=0 make others",
        ),
        (
            {"policy_loss": {"name": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}, "correction.kind": "none"},
            "algorithm.reduction=token_mean is not GSPO's",
        ),
    ],
)
def test_what_is_legal_and_known_to_go_wrong_is_warned_of(defaults, overrides: dict[str, Any], says: str) -> None:
    dppo = {"name": "dppo", "divergence": "binary_tv", "delta": 0.1, "top_k": 20, "anchor": "rollout", "max_ratio": 9}
    base = changed(defaults, {"algorithm.policy_loss": dppo} if "policy_loss.anchor" in overrides else {})
    if "policy_loss.anchor" in overrides:
        base = changed(base, {"algorithm.correction.kind": "none"})
    assert validate.warnings(parsed(defaults)) == []
    (warning,) = validate.warnings(parsed(changed(base, {f"algorithm.{k}": v for k, v in overrides.items()})))
    assert says in warning


@pytest.mark.parametrize(
    "overrides",
    [
        ("rollout.weight_transfer=object_store", "cluster.gpus_per_learner=0.5", "cluster.gpus_per_rollout=0.5"),
        ("cluster.gpus_per_learner=0.5", "cluster.gpus_per_rollout=1", "cluster.gpus_per_scorer=0.5"),
    ],
)
def test_processes_that_nccl_does_not_connect_may_share_a_gpu(overrides: tuple[str, ...]) -> None:
    on_gpus = ("rollout.memory_gib=null", "learner.world_size=1")
    assert compose_config("cluster=ray", *on_gpus, *overrides).cluster.gpus_per_learner == 0.5


def test_one_gpu_for_all_is_pointed_to_colocated_placement() -> None:
    halves = ("cluster.gpus_per_learner=0.5", "cluster.gpus_per_rollout=0.5", "cluster.placement=disaggregated")
    with pytest.raises(
        ConfigError, match=r"^cluster\.gpus_per_rollout=0\.5: .*; set it to 1, set cluster\.placement=col"
    ):
        compose_config("experiment=ral_qwen2_5_vl_7b_1gpu", *halves)


def test_a_list_whose_only_entry_is_wrong_is_not_also_called_too_short(make_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config("data=looking", "data.difficulty=6")
    assert str(caught.value) == "data.difficulty=6: out of range; set it to 5 or less"
    with pytest.raises(ConfigError, match=r"^data\.families='chains': no such choice; use 'search', "):
        make_config("data=looking", "data.families=chains")
    with pytest.raises(ConfigError, match=r"^data\.difficulty=\[\]: too few values; give at least 1$"):
        make_config("data=looking", "data.difficulty=[]")


def naming(kind: type[CommandConfig]) -> Iterator[tuple[str, Registry]]:
    """Fields that hold the name of an implementation, and the registry."""
    for path, info in declared_fields(kind):
        for marks in (info.metadata, *(getattr(part, "__metadata__", ()) for part in get_args(info.annotation))):
            yield from ((path, mark.registry) for mark in marks if isinstance(mark, NameIn))


@pytest.mark.parametrize("kind", [TrainConfig, EvaluateConfig])
def test_an_unknown_name_is_refused_with_all_that_are_there(defaults, kind: type[CommandConfig]) -> None:
    fields = [(path, registry) for path, registry in naming(kind) if "reward.signals" not in path]
    assert len(fields) >= 3
    for path, registry in fields:
        wrong = {path: {"number": "help"} if path == "reward.kinds" else "help"}
        with pytest.raises(ConfigError) as caught:
            parsed(changed(defaults, wrong), kind)
        assert caught.value.args[0].startswith(path)
        assert caught.value.args[0].endswith(
            f"=help: no such {registry.what}; choose one of {', '.join(registry.names)}"
        )
