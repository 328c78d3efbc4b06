"""What may keep a value that nothing reads, and what is neutral: read from `conf/`, the default first."""

from collections.abc import Callable, Iterator

import pytest

from ral_system.config.base import Group
from ral_system.config.commands import COMMANDS, EvaluateConfig, TrainConfig
from ral_system.config.inert import presets_of, without_effect
from ral_system.config.known import read_by
from ral_system.config.model import TinyModelConfig
from ral_system.config.policy_loss import ClipLossConfig, GspoLossConfig
from ral_system.config.reward import VisualRewardConfig
from ral_system.config.validate import parse_config
from ral_system.errors import ConfigError
from tests.composed import compose_config

BECAUSE = ("model.tiny", "model.path=/m", "remove it")
TINY = TinyModelConfig(hidden=128, layers=4, vision_layers=2, tokenizer=None)


def with_paths(group: Group, path: str = "") -> Iterator[tuple[str, Group]]:
    yield path, group
    for name, value in group:
        if isinstance(value, Group):
            yield from with_paths(value, f"{path}.{name}".removeprefix("."))


def test_a_default_has_no_line_and_another_value_has_one_with_the_default() -> None:
    fields = tuple(TinyModelConfig.model_fields)
    assert list(without_effect(TINY, *BECAUSE, *fields)) == []
    given = TINY.model_copy(update={"layers": 3, "tokenizer": "/t"})
    assert list(without_effect(given, *BECAUSE, *fields)) == [
        "model.tiny.layers=3 has no effect with model.path=/m; remove it, or set layers to 4",
        "model.tiny.tokenizer=/t has no effect with model.path=/m; remove it, or set tokenizer to null",
    ]
    assert (
        list(without_effect(given, *BECAUSE, "hidden", "tokenizer"))
        == list(without_effect(given, *BECAUSE, *fields))[1:]
    )


def test_a_value_of_an_experiment_has_no_line() -> None:
    smoke = TINY.model_copy(update={"hidden": 64, "layers": 2, "vision_layers": 1})
    assert list(without_effect(smoke, *BECAUSE, "hidden", "layers", "vision_layers")) == []
    changed = smoke.model_copy(update={"layers": 3})
    (hidden, layers, vision) = without_effect(changed, *BECAUSE, "hidden", "layers", "vision_layers")
    assert hidden.startswith("model.tiny.hidden=64 has no effect")
    assert layers.startswith("model.tiny.layers=3 has no effect")
    assert vision.startswith("model.tiny.vision_layers=1 has no effect")


def test_other_presets_of_the_chosen_class_count_and_those_of_another_do_not() -> None:
    def lines(**given: float | None) -> list[str]:
        clip = ClipLossConfig(name="clip", **{"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None, **given})
        return list(without_effect(clip, "algorithm.policy_loss", "WEIGHT=0", "raise it", *given))

    assert lines(clip_high=0.28) == lines(dual_clip=3.0) == []  # clip_higher and dual_clip
    assert lines(clip_low=1.0) == [  # of cispo
        "algorithm.policy_loss.clip_low=1.0 has no effect with WEIGHT=0; raise it, or set clip_low to 0.2"
    ]
    gspo = GspoLossConfig(name="gspo", clip_low=3e-4, clip_high=4e-4)
    found = [preset.values for preset in presets_of(gspo, "algorithm.policy_loss")]
    assert [values["clip_low"] for values in found if "clip_low" in values] == [3e-4]


def test_an_option_counts_as_a_whole_and_an_experiment_by_the_fields_named() -> None:
    def lines(**given: object) -> list[str]:
        visual = VisualRewardConfig(**{"weight": 0.0, "form": "share", "model": "policy", **given})
        return list(without_effect(visual, "reward.visual", "WEIGHT", "raise it", "form", "model"))

    assert lines() == []
    assert lines(form="laser_pays_length") == [  # the option with this form sets a weight as well
        "reward.visual.form=laser_pays_length has no effect with WEIGHT; raise it, or set form to share"
    ]
    assert lines(form="laser_pays_length", weight=0.05) == []


@pytest.mark.parametrize("kind", tuple(dict.fromkeys(COMMANDS.values())))
def test_the_first_of_a_fields_values_is_what_hydra_composes(
    compose_container: Callable[..., dict[str, object]], kind: type[TrainConfig]
) -> None:
    compared = 0
    for path, group in with_paths(parse_config(read_by(kind, compose_container(())), kind)):
        for field, given in group if path else ():
            found = [preset.values[field] for preset in presets_of(group, path) if field in preset.values]
            if found and not str(found[0]).startswith("${"):
                assert given in (found[0], (found[0],)), f"{path}.{field}"  # a list may be written as its only value
                compared += 1
    assert compared >= 10


LOCAL = ("cluster=local",)
LEGAL = {
    "a teacher's resources in a cluster's file": ("cluster.cpus_per_teacher=2", "cluster.gpus_per_teacher=1"),
    "a reference's resources without a reference": ("algorithm.kl.coefficient=0", "cluster.cpus_per_scorer=1"),
    "a project of W&B that is off": ("logging.wandb=disabled", "logging.wandb_project=mine"),
    "sizes of the model that another run trained": ("model.tiny.hidden=96", "start_model=/model"),
    "an experiment's sizes beside a model": ("experiment=smoke", "model.path=/model"),
    "an experiment's evaluations, none inside": ("experiment=smoke", "evaluation.every=0"),
    "an experiment's memory on the CPU": (
        *("experiment=ral_qwen2_5_vl_7b_1gpu", "cluster.placement=disaggregated"),
        *("cluster.gpus_per_rollout=0", "cluster.gpus_per_learner=0"),
    ),
    "an experiment's demonstrations, and its glances without them": ("experiment=avar_quickstart",),
    "a teacher's settings in an experiment that does not teach": (
        *("experiment=attention_distill_qwen2_5_vl_32b_to_7b", "algorithm=ral", "teacher.path=null"),
    ),
    "the weight of a preset whose share is held, at another layer": (
        *("algorithm=ease", "algorithm.attention.target_gradient_share=0.2", "algorithm.attention.layers=[0]"),
    ),
    "every loss of the presets without weight": (
        *("algorithm=distill", "teacher.path=/t", "algorithm.policy_weight=0", "algorithm/policy_loss=dual_clip"),
    ),
    "a tolerance for one kind of question": ("+reward.kinds={number: numeric}", "reward.tolerance.absolute=0.1"),
}


@pytest.mark.parametrize("case", LEGAL)
def test_what_people_keep_in_files_or_switch_per_run_stays_legal(case: str) -> None:
    compose_config(*LEGAL[case])


def test_a_limit_is_legal_with_a_benchmark() -> None:
    given = ("data=easyr1", "data.sources.main.path=/rows.json", "stages=[rl]", "evaluation.benchmark.limit=3")
    compose_config(*given, "evaluation.benchmark.name=mme", "evaluation.benchmark.folder=/mme", kind=EvaluateConfig)
    with pytest.raises(ConfigError, match=r"^evaluation\.benchmark\.limit=3 has no effect"):
        compose_config(*given, kind=EvaluateConfig)
