"""What a run says of its start model before anything starts: rollout engines cannot serve it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ral_system.config.choices import STAGES
from ral_system.config.commands import TrainConfig
from ral_system.controller.start import check_model
from ral_system.errors import SetupError
from ral_system.tasks.visual_search import words
from tests.gemma3_model import build_gemma3

RAY = ("cluster=ray", "rollout=vllm")


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
    check_model(make_config(*RAY, "cluster.gpus_per_rollout=1"), gemma3, STAGES)
    check_model(make_config(), gemma3, STAGES)
    check_model(make_config(*RAY), tiny_model, STAGES)
