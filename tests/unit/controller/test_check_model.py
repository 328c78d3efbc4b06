"""Refusals and warnings about a start model: engines cannot serve it, layers have short windows."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ral_system.config.choices import STAGES
from ral_system.config.commands import TrainConfig
from ral_system.controller.start import check_model
from ral_system.errors import ConfigError, SetupError
from ral_system.tasks.visual_search import words
from tests.gemma3_model import WINDOW, build_gemma3

DISTILLED = ("algorithm=attention_distill", "teacher.path=/models/t")
RAY = ("cluster=ray", "rollout=vllm")
WITHOUT = "algorithm.attention.layers=[0], without a window"


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layer 0 sees all; layers 1 and 2 have a window."""
    folder = tmp_path_factory.mktemp("gemma3")
    build_gemma3(folder, words())
    return folder


def test_a_model_that_the_engines_cannot_serve_is_refused_where_engines_start(
    gemma3: Path, tiny_model: Path, make_config: Callable[..., TrainConfig]
) -> None:
    for stages in (STAGES, ("sft",), ("rl",)):
        with pytest.raises(
            SetupError, match=r"^rollout\.engine=vllm on a CPU: .*choose rollout=hf, or engines on GPUs$"
        ):
            check_model(make_config(*RAY), gemma3, stages)
    check_model(make_config(*RAY), gemma3, ["perceive"])
    on_gpus = ("cluster.gpus_per_rollout=1", "cluster.gpus_per_learner=1")
    check_model(make_config(*RAY, *on_gpus), gemma3, STAGES)
    check_model(make_config(), gemma3, STAGES)
    assert check_model(make_config(*RAY), tiny_model, STAGES) is None


@pytest.mark.parametrize(
    ("given", "layers", "remedy"),
    [
        (("algorithm.attention.layers=last",), "last: rows of layer 2", WITHOUT),
        (("algorithm.attention.layers=all",), "all: rows of layer 1, 2", WITHOUT),
        (("algorithm.attention.layers=[0,-2]",), "[0, -2]: rows of layer 1", WITHOUT),
        (DISTILLED, "last: rows of layer 2", f"rollout.max_model_len={WINDOW}"),
    ],
)
def test_layers_with_windows_shorter_than_a_sequence_are_named(
    gemma3: Path, make_config: Callable[..., TrainConfig], given: tuple[str, ...], layers: str, remedy: str
) -> None:
    config = make_config("algorithm=ral", "rollout.max_model_len=200", *given)
    warning = check_model(config, gemma3, ["rl"])
    assert warning is not None and "\n" not in warning
    says = f"algorithm.attention.layers={layers} see {WINDOW} tokens back, of up to rollout.max_model_len=200: "
    assert warning.startswith(says)
    assert warning.endswith(f"; set {remedy}")


def test_a_model_with_windows_alone_needs_shorter_sequences(
    gemma3: Path, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    for file in gemma3.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes().replace(b'"full_attention"', b'"sliding_attention"'))
    warning = check_model(make_config("algorithm=ral"), tmp_path, ["rl"])
    assert warning is not None and warning.endswith(f"; set rollout.max_model_len={WINDOW}")


def test_windows_that_no_trained_row_meets_are_not_mentioned(
    gemma3: Path, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config("algorithm=ral", "rollout.max_model_len=200")
    assert check_model(config, gemma3, ["perceive", "sft"]) is None
    assert check_model(make_config("algorithm=ral", "algorithm.attention.layers=[0]"), gemma3, ["rl"]) is None
    assert check_model(make_config("algorithm=grpo"), gemma3, ["rl"]) is None
    build_gemma3(tmp_path, words(), window=200)
    assert check_model(config, tmp_path, ["rl"]) is None


def test_layers_that_are_not_there_are_refused(
    gemma3: Path, qwen3_5_folder: Path, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config("algorithm=ral", "algorithm.attention.layers=[3]")
    with pytest.raises(ConfigError, match=rf"^model {gemma3}, algorithm.attention: .* has 3 layers, so no layer 3$"):
        check_model(config, gemma3, ["rl"])
    assert check_model(config, gemma3, ["sft"]) is None
    config = make_config("algorithm=ral", "algorithm.attention.layers=[0]")
    with pytest.raises(ConfigError, match="layer 0 has linear attention, which has no weights to read"):
        check_model(config, qwen3_5_folder, ["rl"])


def test_frozen_models_on_more_gpus_than_layers_are_refused(
    gemma3: Path, tiny_model: Path, make_config: Callable[..., TrainConfig]
) -> None:
    """Per field: gemma3 has three layers, the tiny model two."""
    ray = ("cluster=ray", "rollout=hf", "algorithm=attention_distill", f"teacher.path={tiny_model}")
    assert check_model(make_config(*ray, "cluster.gpus_per_scorer=3", "cluster.gpus_per_teacher=2"), gemma3, ["rl"])
    message = rf"^cluster\.gpus_per_scorer=4: {gemma3} has 3 decoder layers, .* over more GPUs; set it to 3 or less$"
    with pytest.raises(ConfigError, match=message):
        check_model(make_config(*ray, "cluster.gpus_per_scorer=4"), gemma3, ["rl"])
    message = rf"^cluster\.gpus_per_teacher=3: {tiny_model} has 2 decoder layers, .*; set it to 2 or less$"
    with pytest.raises(ConfigError, match=message):
        check_model(make_config(*ray, "cluster.gpus_per_teacher=3"), gemma3, ["rl"])
    assert check_model(make_config(*ray, "cluster.gpus_per_teacher=3"), gemma3, ["sft"]) is None
