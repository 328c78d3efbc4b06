"""Every mistake is refused with the field, its value and the remedy. Paths are discovered from the defaults."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest

from ral_system.config import validate
from ral_system.config.commands import COMMANDS, CommandConfig, TrainConfig
from ral_system.config.data import ColumnsConfig
from ral_system.config.known import other_readers, read_by
from ral_system.config.validate import parse_config
from ral_system.errors import ConfigError

FILES: dict[str, Any] = {
    "name": "files",
    "seed": 0,
    "sources": {
        "main": {
            "path": "rows.json",
            "files": None,
            "root": None,
            "media_files": None,
            "revision": None,
            "weight": 1.0,
            "split": "both",
            "columns": dict.fromkeys(ColumnsConfig.model_fields) | {"question": "problem", "answer": "solution"},
        }
    },
    "system_prompt": "",
    "instructions": {},
    "held_out": 0.1,
    "image": {"min_pixels": None, "max_pixels": None},
    "video": {"fps": 1.0, "max_frames": 8, "min_frames": 2, "min_pixels": 784, "max_pixels": 7840},
    "max_broken": 0.1,
    "workers": 1,
    "timeout_s": 10.0,
}

VIDEOS = {
    **{"name": "video_search", "seed": 0, "seconds": (4,), "max_frames": (8,), "described": 4},
    **{"train_records": 2, "system_prompt": ""},
}

TORCH = {
    **{"engine": "torch", "world_size": 1, "micro_batch": 4, "dtype": "float32", "gradient_checkpointing": False},
    **{"learning_rate": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "max_grad_norm": 1.0, "warmup_updates": 0},
}
HF = {
    **{"engine": "hf", "workers": 1, "temperature": 1.0, "max_new_tokens": 64, "stop_at_answer": False},
    **{
        "max_model_len": 256,
        "max_sequences": 8,
        "dtype": "float32",
        "weight_transfer": "object_store",
        "on_new_weights": "finish",
    },
    "log_prob_gate": {"token": 1e-4, "outliers": 0.0, "mean": None, "p999": None},
}

# overrides; then what the message must contain: fields, values and the remedy
ILLEGAL: dict[str, tuple[dict[str, Any], list[str]]] = {
    "attention term without a second update": (
        {"algorithm.attention.weight": 0.5, "algorithm.updates_per_step": 1},
        ["algorithm.attention.weight=0.5", "algorithm.updates_per_step=1", "passes_per_step to 2 or more"],
    ),
    "token distillation without a teacher": (
        {"algorithm.distillation.tokens.weight": 0.5},
        ["algorithm.distillation.tokens.weight=0.5", "set teacher.path"],
    ),
    "attention distillation without a teacher": (
        {"algorithm.distillation.attention.weight": 0.5},
        ["algorithm.distillation.attention.weight=0.5", "set teacher.path"],
    ),
    "a teacher that teaches nothing": (
        {"teacher.path": "/teacher"},
        ["teacher.path=/teacher has no effect", "choose algorithm=distill"],
    ),
    "a teacher of attention that teaches nothing": (
        {"teacher.path": "/t", "teacher.attention_path": "/a", "algorithm.distillation.tokens.weight": 1.0},
        ["teacher.attention_path=/a has no effect"],
    ),
    "a teacher whose only subject another one teaches": (
        {"teacher.path": "/t", "teacher.attention_path": "/a", "algorithm.distillation.attention.weight": 1.0},
        ["teacher.path=/t has no effect"],
    ),
    "captions of files": (
        {"data": FILES, "stages": ["perceive", "rl"]},
        ["stages=['perceive', 'rl']: perceive imitates captions", "set stages=[sft,rl]"],
    ),
    "thoughts of files that have none": (
        {"data": FILES, "stages": ["sft"]},
        ["data.sources.main.columns.thought=null", "name the column"],
    ),
    "half of a source, which an experiment left": (
        {"data": FILES | {"sources": {"main": {"path": "rows.json"}}}, "stages": ["rl"]},
        ["data.sources.main has a path and no columns: ~data.sources.main removes it"],
    ),
    "no pixels at all": (
        {"data": FILES | {"image": {"min_pixels": 9000, "max_pixels": 8000}}, "stages": ["rl"]},
        ["data.image.min_pixels=9000 is above data.image.max_pixels=8000"],
    ),
    "no number of frames": (
        {"data": FILES | {"video": FILES["video"] | {"min_frames": 9}}, "stages": ["rl"]},
        ["data.video.min_frames=9 is above data.video.max_frames=8; lower it"],
    ),
    "a benchmark without its files": (
        {"data": FILES, "stages": ["rl"], "evaluation.benchmark.name": "mme"},
        ["evaluation.benchmark.name=mme and evaluation.benchmark.folder=None go together"],
    ),
    "a benchmark that is none": (
        {"data": FILES, "stages": ["rl"], "evaluation.benchmark": {"name": "V_Star", "folder": "/v", "limit": None}},
        ["evaluation.benchmark.name=V_Star: no such benchmark; did you mean vstar? There are vstar, mme, chartqa"],
    ),
    "a benchmark like no other": (
        {"data": FILES, "stages": ["rl"], "evaluation.benchmark": {"name": "none", "folder": "/v", "limit": None}},
        ["evaluation.benchmark.name=none: no such benchmark; choose one of vstar, mme, chartqa"],
    ),
    "a benchmark of no size": (
        {"evaluation.benchmark.name": "mme", "evaluation.benchmark.folder": "/mme"},
        ["evaluation.benchmark.name=mme", "data.name=visual_search", "add data=files"],
    ),
    "values of no axis": (
        {"sweep.values": [4], "sweep.models": {"a": "/a"}},
        ["sweep.values has no effect with sweep.axis=null", "sweep.models has no effect"],
    ),
    "an axis without values": ({"sweep.axis": "visual_tokens"}, ["sweep.values=[] leaves sweep.axis=visual_tokens"]),
    "a sweep of a steered model": (
        {"sweep.axis": "visual_tokens", "sweep.values": [4], "intervention.image": 0.1},
        ["sweep.axis compares models as they are"],
    ),
    "an odd number of frames": (
        {"data": VIDEOS, "sweep.axis": "frames", "sweep.values": [2, 3]},
        ["sweep.values=[3] are no even numbers of frames"],
    ),
    "more frames than there are": (
        {"data": VIDEOS, "sweep.axis": "frames", "sweep.values": [8, 18]},
        ["sweep.values=[18] are more frames than the 16 of data.seconds"],
    ),
    "frames of pictures": (
        {"sweep.axis": "frames", "sweep.values": [4]},
        ["sweep.axis=frames needs videos", "choose data=video_search or files"],
    ),
    "a board of five cells": (
        {"sweep.axis": "visual_tokens", "sweep.values": [4, 5]},
        ["sweep.values=[5] are not the cells of a board", "use 4, 9, 16"],
    ),
    "too few videos": (
        {"data": VIDEOS},
        ["would draw a question twice with the same weights from data.train_records=2"],
    ),
    "visual tokens of videos": (
        {"data": VIDEOS | {"train_records": 99}, "sweep.axis": "visual_tokens", "sweep.values": [4]},
        ["data.name=video_search varies in frames; choose sweep=frames"],
    ),
    "files without a file": (
        {"data": FILES | {"sources": {}}, "stages": ["rl"]},
        ["data.sources={}: no file; add one"],
    ),
    "a function that nobody calls": (
        {"reward.function": "mine:closeness"},
        ["reward.verifier=exact with reward.function=mine:closeness", "reward=function"],
    ),
    "no function to call": (
        {"reward.verifier": "function"},
        ["reward.verifier=function with reward.function=null", "reward.function=module:name"],
    ),
    "staler than a pause allows": (
        {"algorithm.max_staleness": 3, "checkpoint.every": 3},
        ["algorithm.max_staleness=3 is never reached with checkpoint.every=3", "raise checkpoint.every"],
    ),
    "staler than the run is long": (
        {"algorithm.max_staleness": 3, "algorithm.steps": 3, "evaluation.every": 0},
        ["algorithm.max_staleness=3 is never reached with algorithm.steps=3", "raise algorithm.steps"],
    ),
    "weights that change under what is not under way": (
        {"rollout.on_new_weights": "continue"},
        ["rollout.on_new_weights=continue has no effect", "raise algorithm.max_staleness, or set it to finish"],
    ),
    "distilled attention of each head": (
        {
            "teacher.path": "/t",
            "algorithm.distillation.attention.weight": 1.0,
            "algorithm.attention.heads": "each",
        },
        ["algorithm.attention.heads=each", "set it to mean"],
    ),
    "distilled attention of another layer": (
        {
            "teacher.path": "/t",
            "algorithm.distillation.attention.weight": 1.0,
            "algorithm.attention.layers": [0, 1],
        },
        ["algorithm.attention.layers=[0, 1]", "add -1"],
    ),
    "nothing is learned": (
        {"algorithm.policy_weight": 0.0, "algorithm.attention.weight": 0.0},
        ["algorithm.policy_weight=0", "raise one"],
    ),
    "more objects than cells": (
        {"data.grid": 3, "data.objects": 10},
        ["data.objects=10", "data.grid=[3]", "at most 9"],
    ),
    "more prompts than records": (
        {"algorithm.prompts_per_step": 16, "data.train_records": 8},
        ["algorithm.prompts_per_step=16", "data.train_records=8", "raise the latter"],
    ),
    "batch not divisible": (
        {"algorithm.prompts_per_step": 3, "algorithm.completions_per_prompt": 5},
        ["prompts_per_step * completions_per_prompt = 15", "algorithm.updates_per_step", "change one"],
    ),
    "perceive batch not divisible": (
        {"perceive.batch": 31, "learner.world_size": 2},
        ["perceive.batch=31", "learner.world_size=2"],
    ),
    "sft batch not divisible": ({"sft.batch": 33, "learner.world_size": 2}, ["sft.batch=33", "learner.world_size=2"]),
    "local with everything distributed": (
        {
            "cluster.kind": "local",
            "rollout.workers": 2,
            "learner.world_size": 2,
        },
        [
            "rollout.engine=vllm needs cluster=ray; with cluster=local choose rollout=hf",
            "rollout.workers=2 needs cluster=ray; with cluster=local set rollout.workers=1",
            "learner.engine=deepspeed needs cluster=ray; with cluster=local choose learner=torch",
            "learner.world_size=2 needs cluster=ray; with cluster=local set learner.world_size=1",
        ],
    ),
    "torch engine on several ranks": (
        {"learner": TORCH | {"world_size": 2}},
        ["learner.engine=torch", "set learner.world_size=1 or choose learner=deepspeed"],
    ),
    "a ZeRO stage of the torch engine": (
        {"learner": TORCH | {"zero_stage": 2}},
        ["learner.zero_stage=2: learner.engine=torch has no such setting; remove it (~learner.zero_stage), or choose"],
    ),
    "the engine alone, in place of the group": (
        {"learner.engine": "torch", "rollout.engine": "hf"},
        [
            "learner.zero_stage=2: learner.engine=torch has no such setting",
            "rollout.tensor_parallel=1: rollout.engine=hf has no such setting",
            "choose the engine as a group, rollout=NAME",
        ],
    ),
    "an engine that does not exist": (
        {"rollout.engine": "sglang"},
        ["rollout.engine=sglang: no such choice; use one of 'hf', 'vllm'"],
    ),
    "transformers behind Ray": (
        {"rollout": HF},
        ["rollout.engine=hf", "cluster.kind=ray", "choose rollout=vllm or cluster=local"],
    ),
    **{
        f"{field} of the transformers engine": (
            {"cluster.kind": "local", "learner": TORCH, "rollout": HF | {field: value}},
            [f"rollout.{field}={value}: rollout.engine=hf has no such setting; remove it (~rollout.{field})"],
        )
        for field, value in (("tensor_parallel", 2), ("memory_gib", 4.0), ("gpu_memory_utilization", 0.5))
    },
    "a decay without an average": (
        {"algorithm.attention.ema_decay": 0.5},
        [
            "algorithm.attention.ema_decay=0.5 has no effect with algorithm.attention.anchor=old",
            "set the anchor to ema, or set ema_decay to 0.99",
        ],
    ),
    "entries of a record that is kept whole": (
        {"algorithm.attention.top_k": 8},
        [
            "algorithm.attention.top_k=8 has no effect with algorithm.attention.record=dense",
            "set record to top_k, or set top_k to 64",
        ],
    ),
    "a mixture for a divergence without one": (
        {"algorithm.distillation.tokens.jsd_beta": 0.1},
        [
            "algorithm.distillation.tokens.jsd_beta=0.1 has no effect with "
            "algorithm.distillation.tokens.divergence=reverse_kl",
            "set the divergence to jsd, or set jsd_beta to 0.5",
        ],
    ),
    "a length that nothing is divided by": (
        {"algorithm.fixed_length": 100},
        [
            "algorithm.fixed_length=100 has no effect with algorithm.reduction=token_mean",
            "set the reduction to fixed_length, or fixed_length to rollout.max_new_tokens, 64",
        ],
    ),
    **{
        f"the buffer of no penalty, with {handling}": (
            {"algorithm.overlong": {"handling": handling, "buffer": 8}},
            [f"algorithm.overlong.buffer=8 has no effect with algorithm.overlong.handling={handling}", "buffer to 16"],
        )
        for handling in ("none", "mask")
    },
    "bounds of no correction": (
        {"algorithm.correction": {"kind": "none", "low": 0.1, "high": 9.0}},
        [
            "algorithm.correction.low=0.1 has no effect with algorithm.correction.kind=none",
            "algorithm.correction.high=9.0 has no effect with algorithm.correction.kind=none",
        ],
    ),
    "a lower bound of a truncated correction": (
        {"algorithm.correction.low": 0.1},
        [
            "algorithm.correction.low=0.1 has no effect with algorithm.correction.kind=truncate",
            "set the kind to mask or reject_sequence, or set low to 0.5",
        ],
    ),
    "a frame without pixels": (
        {"data": FILES | {"video": FILES["video"] | {"min_pixels": 9000}}, "stages": ["rl"]},
        ["data.video.min_pixels=9000 is above data.video.max_pixels=7840; lower it"],
    ),
    "an average that keeps nothing, with one update": (
        {
            "algorithm.attention.anchor": "ema",
            "algorithm.attention.ema_decay": 0.0,
            "algorithm.updates_per_step": 1,
        },
        ["algorithm.attention.anchor=ema", "algorithm.attention.ema_decay=0", "raise ema_decay"],
    ),
    "an anchor without a term": (
        {"algorithm.attention.anchor": "reference", "algorithm.attention.weight": 0.0},
        ["algorithm.attention.anchor=reference", "algorithm.attention.weight=0", "set anchor to old"],
    ),
    "a cap without a term": (
        {"algorithm.attention.max_gradient_share": 0.2, "algorithm.attention.weight": 0.0},
        ["algorithm.attention.max_gradient_share=0.2", "algorithm.attention.weight=0", "to null"],
    ),
    "bfloat16 with ZeRO 1": (
        {"learner.dtype": "bfloat16", "learner.zero_stage": 1, "rollout.log_prob_gate.token": 2.0},
        ["learner.zero_stage=1", "learner.dtype=bfloat16", "zero_stage to 2 or 3"],
    ),
    "bfloat16 in the torch engine": (
        {"learner": TORCH | {"dtype": "bfloat16"}, "rollout.log_prob_gate.token": 2.0},
        ["learner.engine=torch", "learner.dtype=bfloat16", "choose learner=deepspeed", "learner.dtype=float32"],
    ),
    "a gate too tight for bfloat16": (
        {"rollout.dtype": "bfloat16"},
        ["rollout.log_prob_gate.token=0.0001", "rollout.dtype=bfloat16", "set both to float32, or"],
    ),
    "a visual reward without a system turn": (
        {"reward.visual.weight": 0.3, "data.system_prompt": ""},
        ["reward.visual.weight=0.3", "data.system_prompt is empty; set one"],
    ),
    "the form of a visual reward that is not given": (
        {"reward.visual.form": "ratio"},
        ["reward.visual.form=ratio", "reward.visual.weight=0", "set form to share"],
    ),
    "a sequence ratio whose tokens are weighed one by one": (
        {"algorithm.policy_loss": {"name": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}},
        ["algorithm.correction.kind=truncate", "gspo", "set the kind to reject_sequence or none"],
    ),
    "a correction of what is no ratio to correct": (
        {
            "algorithm.policy_loss": {
                "name": "dppo",
                "divergence": "binary_tv",
                "delta": 0.1,
                "top_k": 20,
                "anchor": "rollout",
                "max_ratio": 9,
            }
        },
        ["algorithm.correction.kind=truncate", "algorithm.policy_loss.anchor=rollout", "set the kind to none"],
    ),
    "an estimator of what is not penalised": (
        {"algorithm.kl.coefficient": 0.0, "algorithm.kl.estimator": "k2"},
        ["algorithm.kl.estimator=k2", "algorithm.kl.coefficient=0", "set the estimator to k3"],
    ),
    "a place for what is not penalised": (
        {"algorithm.kl.coefficient": 0.0, "algorithm.kl.place": "reward"},
        ["algorithm.kl.place=reward", "set the place to loss"],
    ),
    "a penalty that no part of the reward has": (
        {"algorithm.kl.place": "reward", "algorithm.advantage": "gdpo"},
        ["algorithm.kl.place=reward", "algorithm.advantage=gdpo", "set the place to loss"],
    ),
    "an over-long penalty that no part of the reward has": (
        {"algorithm.overlong.handling": "penalty", "algorithm.advantage": "gdpo"},
        ["algorithm.overlong.handling=penalty", "set the handling to mask or none"],
    ),
    "a buffer longer than a response": (
        {"algorithm.overlong.handling": "penalty", "algorithm.overlong.buffer": 65},
        ["algorithm.overlong.buffer=65", "rollout.max_new_tokens=64", "lower it"],
    ),
    "more rounds than records": (
        {"algorithm.prompts_per_step": 16, "algorithm.sampling_rounds": 3, "data.train_records": 40},
        ["algorithm.sampling_rounds=3", "data.train_records=40", "raise the latter"],
    ),
    "a signal that is not there yet": (
        {"algorithm.sampling_rounds": 2, "reward.visual.weight": 0.3},
        ["algorithm.sampling_rounds=2", "reward.visual.weight adds", "set sampling_rounds to 1"],
    ),
    "top tokens that nothing reads": (
        {
            "algorithm.policy_weight": 0.0,
            "algorithm.correction.kind": "none",
            "algorithm.policy_loss": {
                "name": "dppo",
                "divergence": "top_k_kl",
                "delta": 0.1,
                "top_k": 20,
                "anchor": "rollout",
                "max_ratio": 9,
            },
        },
        ["algorithm.policy_loss.divergence=top_k_kl", "algorithm.policy_weight=0", "choose algorithm/policy_loss=clip"],
    ),
    "a share of nothing": (
        {
            "algorithm.policy_weight": 0.0,
            "algorithm.kl.coefficient": 0.0,
            "algorithm.attention.max_gradient_share": 0.5,
        },
        ["algorithm.attention.max_gradient_share=0.5", "set it to null"],
    ),
    "top tokens of another anchor": (
        {
            "algorithm.policy_loss": {
                "name": "dppo",
                "divergence": "top_k_tv",
                "delta": 0.1,
                "top_k": 20,
                "anchor": "old",
                "max_ratio": 9,
            },
        },
        ["algorithm.policy_loss.anchor=old with divergence=top_k_tv", "or anchor to rollout"],
    ),
    "another loss's setting": (
        {"algorithm.policy_loss": "gspo"},
        ["algorithm.policy_loss='gspo': a loss is chosen as algorithm/policy_loss=gspo"],
    ),
    "an anchor that is no pattern": (
        {"synthesis.anchor": "look (at"},
        ["synthesis.anchor='look (at' is not a regular expression", "correct it"],
    ),
    "a description that nobody reads": (
        {"synthesis.describer.endpoint": "http://127.0.0.1:8000/v1", "synthesis.describer.model": "m"},
        ["synthesis.describer.endpoint has no effect", "set synthesis.reasoner.endpoint as well"],
    ),
    "thoughts to imitate where none are wanted": (
        {"data.demonstrations": "d.jsonl", "algorithm.response_format": "answer_only"},
        ["data.demonstrations=d.jsonl hold thoughts", "set it to null"],
    ),
    "an endpoint without a model": (
        {"synthesis.reasoner.endpoint": "http://127.0.0.1:8000/v1"},
        ["synthesis.reasoner.endpoint=http://127.0.0.1:8000/v1 and synthesis.reasoner.model=None go together"],
    ),
    "an endpoint that is no address": (
        {"synthesis.describer.endpoint": "localhost", "synthesis.describer.model": "m"},
        ["synthesis.describer.endpoint='localhost' is not an address", "http://127.0.0.1:8000/v1"],
    ),
    "an instruction with a misspelt place": (
        {"synthesis.anchorer.instruction": "{reasoning} {desciption}"},
        ["synthesis.anchorer.instruction: {desciption} is never filled in", "{description}"],
    ),
    "no reward": (
        {"reward.correctness": 0.0, "reward.format": 0.0},
        ["reward.correctness", "reward.format", "raise one"],
    ),
    "no room for a prompt": (
        {"rollout.max_new_tokens": 256, "rollout.max_model_len": 256},
        ["rollout.max_new_tokens=256", "rollout.max_model_len=256", "raise the latter"],
    ),
}


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


def test_all_problems_are_reported_at_once(defaults) -> None:
    overrides = {"reward.correctness": 0.0, "reward.format": 0.0, "perceive.batch": 31, "learner.world_size": 2}
    with pytest.raises(ConfigError, match=r"perceive\.batch=31.*; .*reward\.correctness"):
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
    strict = changed(defaults, {"learner.dtype": "bfloat16", "rollout.log_prob_gate.token": 2.0})
    (warning,) = validate.warnings(parsed(strict))
    assert warning.startswith("rollout.log_prob_gate.outliers=0 ends a bfloat16 run")
    assert validate.warnings(parsed(changed(strict, {"rollout.log_prob_gate.outliers": 1e-3}))) == []


def test_a_second_pass_gives_the_attention_term_a_gradient(defaults) -> None:
    one_update = {"algorithm.attention.weight": 0.5, "algorithm.updates_per_step": 1}
    assert parsed(changed(defaults, one_update | {"algorithm.passes_per_step": 2})).algorithm.updates_per_batch == 2


def test_stages_are_sorted_into_the_order_of_a_run(defaults) -> None:
    assert parsed(changed(defaults, {"stages": ["rl", "perceive"]})).stages == ("perceive", "rl")


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
