"""What tests of several packages share: a tiny model on disk, composed configurations, samples to train on."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch is imported. Tiny tensors gain nothing from several threads. Where a test has two, one that waits must
# not spin on another process's core: on a busy machine three training steps took 49 s instead of 2 s.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

from tests.configuration_checks import omit_values

# Imports and collected tests leave a million objects, which Python's default would look through again and again.
gc.set_threshold(50_000, 20, 100)

omit_values()

if importlib.util.find_spec("hypothesis"):  # the machine with a GPU may not have it
    import hypothesis

    # A busy machine is not a failure, and what a test finds does not depend on when it runs.
    hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("steady")

if not Path("/proc/driver/nvidia").exists() and importlib.util.find_spec("triton"):
    # Triton's own functions become the interpreter's or a GPU's when they are first imported: here, before others do.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "TRITON_INTERPRET", "1")
        importlib.import_module("triton.language")

pytest_plugins = ("tests.durations", "tests.hub")

if TYPE_CHECKING:
    from ral_system.config.commands import TrainConfig
    from ral_system.media.store import MediaStore
    from ral_system.training.learner_rank import LearnerRank
    from ral_system.types import Sample

SMALL = {"hidden": 64, "layers": 2, "vision_layers": 1}
"""Two query heads on one key head, two text layers, one vision layer: 0.3 M parameters."""
ADVANTAGES = (1.0, -0.7, 0.4, -1.3, 0.0, 0.9)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., TrainConfig]:
    """Hydra overrides → a command's configuration, by default `TrainConfig`; one process unless overridden."""
    from tests.composed import compose_config

    return lambda *overrides, **kind: compose_config("cluster=local", *overrides, **kind)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random Qwen2.5-VL, its tokenizer and processor. Do not write to it."""
    from ral_system.tasks.tiny_model import build_tiny_model
    from ral_system.tasks.visual_search import words

    folder = tmp_path_factory.mktemp("tiny") / "model"
    build_tiny_model(folder, words(), **SMALL, seed=3)
    return folder


@pytest.fixture(scope="session")
def tied_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the embedding as its output layer, like the smaller published models. Do not write to it."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("tied") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3-VL, its tokenizer and processor. Do not write to it."""
    from tests.qwen3_model import build_qwen3_vl

    folder = tmp_path_factory.mktemp("qwen3")
    build_qwen3_vl(folder)
    return folder


@pytest.fixture(scope="session")
def qwen3_5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3.5, its tokenizer and processor. Do not write to it."""
    from tests.qwen3_5_model import build_qwen3_5

    folder = tmp_path_factory.mktemp("qwen3_5")
    build_qwen3_5(folder)
    return folder


@pytest.fixture(scope="session")
def glm4v_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GLM-4.1V, its tokenizer and processor. Do not write to it."""
    from tests.glm4v_model import build_glm4v

    folder = tmp_path_factory.mktemp("glm4v")
    build_glm4v(folder)
    return folder


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> MediaStore:
    """One store of pictures for all tests."""
    from ral_system.media.store import MediaStore

    return MediaStore(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="session")
def draw_samples(tiny_model: Path, media: MediaStore) -> Callable[[int], list[Sample]]:
    """The first n of an endless row of think-and-answer demonstrations, on 2 × 2 to 4 × 4 pictures: lengths differ."""
    from ral_system.data.chat import ChatRenderer
    from ral_system.models.loading import load_family
    from ral_system.tasks.visual_search import VisualSearch
    from ral_system.types import Sample

    renderer = ChatRenderer(load_family(tiny_model), "answer")

    def sample(i: int) -> Sample:
        record = VisualSearch(seed=0, grid=2 + i % 3, objects=4).record("train", i)
        prompt = renderer.prompt(
            id=f"train/{i}",
            kind=record.kind,
            question=record.question,
            answer=record.answer,
            media=[media.put(record.image)],
            evidence=record.evidence,
        )
        text = f"<think> {record.thought} </think> <answer> {record.answer} </answer>"
        return Sample(prompt.id, prompt, renderer.response(text))

    return lambda count: [sample(i) for i in range(count)]


@pytest.fixture(scope="session")
def rl_samples(
    tiny_model: Path, media: MediaStore, draw_samples: Callable[[int], list[Sample]], make_config: Callable
) -> list[Sample]:
    """Twelve samples with advantages of both signs, and the log-probs that the tiny model gives them."""
    import torch

    from ral_system.attention.read import AttentionRead
    from ral_system.batches.collate import Collator
    from ral_system.scoring.build import build_policy

    policy = build_policy(
        tiny_model, torch.device("cpu"), AttentionRead(), dtype="float32", temperature=make_config().rollout.temperature
    )
    collate = Collator(policy.family, media)
    found = []
    for i, sample in enumerate(draw_samples(12)):
        with torch.no_grad():
            log_probs = policy(collate((sample,))).log_probs[0].tolist()
        found.append(replace(sample, rollout_log_probs=tuple(log_probs), advantage=ADVANTAGES[i % 6]))
    return found


@pytest.fixture(scope="session")
def start_rank(tiny_model: Path, media: MediaStore) -> Callable[..., LearnerRank]:
    """A learner of one rank on the tiny model's weights."""
    from ral_system.training.learner_rank import LearnerRank

    def started(config: TrainConfig, stage: str = "rl") -> LearnerRank:
        return LearnerRank(config, tiny_model, media, rank=0, world_size=1, stage=stage)

    return started


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in a fixed order, for tests that compare bits or committed numbers."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
