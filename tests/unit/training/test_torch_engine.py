import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ral_system.media.store import MediaStore
from ral_system.training.learner_rank import LearnerRank
from ral_system.training.plan import plan_updates
from ral_system.types import Sample


@pytest.fixture
def tied_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with the embedding as its output layer, like the smaller published models."""
    folder = tmp_path / "tied"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_tied_weights_are_saved_once_and_loaded_tied(
    tied_model: Path, media: MediaStore, rl_samples: list[Sample], make_config: Callable, tmp_path: Path
) -> None:
    plan = plan_updates(rl_samples, updates=2, world_size=1, max_tokens=300)
    config = make_config("sft.learning_rate=1e-2")
    rank = LearnerRank(config, tied_model, media, 0, 1, "sft")
    rank.fit(plan.updates[0])
    rank.save(tmp_path / "state")
    expected = rank.fit(plan.updates[1])

    resumed = LearnerRank(config, tied_model, media, 0, 1, "sft")
    resumed.load(tmp_path / "state")
    model = resumed._engine.policy.model
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    assert resumed.fit(plan.updates[1]) == pytest.approx(expected, rel=1e-6)
    assert torch.equal(model.lm_head.weight, rank._engine.policy.model.lm_head.weight)
