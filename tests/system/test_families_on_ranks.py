"""Qwen3-VL, Qwen3.5 and GLM-4.1V on two ranks under ZeRO-3, whose micro-batches are unlike, against one rank."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ral_system.types import Sample
from tests.system.ranks import become_rank, run_ranks

pytestmark = pytest.mark.system

FAMILIES = ("qwen3_vl", "qwen3_5", "glm4v")


def trained(task: Path, family: str, rank: int, world_size: int, learner: dict[str, Any]) -> dict[str, Any]:
    """Log-probs, blinded ones, and metrics of two updates; the weights after them are saved."""
    from ral_system.config.commands import TrainConfig
    from ral_system.media.store import MediaStore
    from ral_system.training.learner_rank import LearnerRank
    from ral_system.training.plan import plan_updates

    folders = json.loads((task / "folders.json").read_text())
    config = TrainConfig.model_validate_json((task / "config.json").read_text())
    whole = config.model_dump() | {"learner": config.learner.model_dump() | learner | {"world_size": world_size}}
    config = TrainConfig.model_validate(whole)
    own = LearnerRank(config, Path(folders[family]), MediaStore(Path(folders["media"])), rank, world_size, "rl")
    own.publish(0)
    samples = pickle.loads((task / f"{family}.pickle").read_bytes())  # noqa: S301 (this test wrote it)
    plan = plan_updates(samples, updates=2, shards=config.learner.shards, max_tokens=1)
    scores = own.score(plan)
    metrics = [own.update(update, scores, None) for update in plan.updates]
    saved = task / f"model_{family}_{learner['engine']}"
    own.save_model(saved)
    blinded = {id: s.blinded_log_probs for id, s in scores.items()}
    return {"log_probs": {id: s.log_probs for id, s in scores.items()}, "blinded": blinded, "metrics": metrics}


def work(task: Path, rank: int, world_size: int, port: int) -> None:
    """One rank; each writes what it found."""
    become_rank(rank, world_size, port)
    import torch

    for family in FAMILIES:
        settings = {"engine": "deepspeed", "offload": "none", "zero_stage": 3, "sequence_parallel": 1}
        settings |= {"collective_timeout_s": 300.0}
        found = trained(task, family, rank, world_size, settings)
        (task / f"{family} {rank}.pickle").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()  # or torch's threads may end the process with an error


@pytest.fixture(scope="module")
def task(
    tmp_path_factory: pytest.TempPathFactory,
    qwen3_folder: Path,
    qwen3_5_folder: Path,
    glm4v_folder: Path,
    media: Any,
    make_config: Any,
) -> Path:
    """A folder with all that ranks need. Of four prompts one is text, one about pictures, one a video, one both."""
    import torch
    from PIL import Image

    from ral_system.attention.read import AttentionRead
    from ral_system.batches.collate import Collator
    from ral_system.data.chat import ChatRenderer
    from ral_system.media.videos import VideoLimits
    from ral_system.scoring.build import build_policy
    from ral_system.types import VideoSampling
    from tests.unit.media.clips import clip, noise

    folder = tmp_path_factory.mktemp("families")
    settings = ("algorithm=vppo", "algorithm.attention.weight=5", "learner.learning_rate=1e-3", "learner.max_tokens=1")
    config = make_config(*settings)
    (folder / "config.json").write_text(config.model_dump_json())
    folders = {"qwen3_vl": qwen3_folder, "qwen3_5": qwen3_5_folder, "glm4v": glm4v_folder}
    (folder / "folders.json").write_text(
        json.dumps({name: str(path) for name, path in {**folders, "media": media.folder}.items()})
    )
    pictures = [media.put(Image.fromarray(noise(3 + i, 1, 56, 84)[0])) for i in range(2)]
    video = media.put_video(clip(noise(7, 4, 56, 84)), VideoSampling(1.0, 4, 2), VideoLimits())
    for family, model in folders.items():
        temperature = config.rollout.temperature
        policy = build_policy(model, torch.device("cpu"), AttentionRead(), dtype="float32", temperature=temperature)
        collate, renderer = Collator(policy.family, media), ChatRenderer(policy.family, "answer")
        samples = []
        for i, about in enumerate([(), pictures, (video,), (pictures[0], video)] * 2):
            prompt = renderer.prompt(id=f"{i}", kind="", question="what is at a1 ?", answer="", media=about)
            for n, text in enumerate(("<answer> red </answer>", "<think> a1 </think> <answer> blue </answer>")):
                sample = Sample(f"{i}#{n}", prompt, renderer.response(text), index=n, advantage=(1.0, -0.6)[n])
                with torch.no_grad():
                    log_probs = policy(collate((sample,))).log_probs[0].tolist()
                samples.append(replace(sample, rollout_log_probs=tuple(log_probs)))
        (folder / f"{family}.pickle").write_bytes(pickle.dumps(samples))
    return folder


@pytest.fixture(scope="module")
def of_ranks(commands: Any, task: Path) -> dict[str, list[dict[str, Any]]]:
    """Run all ranks; the results of each, by family."""
    run_ranks(commands, __file__, task, 2)
    return {
        family: [pickle.loads((task / f"{family} {rank}.pickle").read_bytes()) for rank in range(2)]  # noqa: S301
        for family in FAMILIES
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_train_as_one(task: Path, of_ranks: dict[str, list[dict[str, Any]]], family: str) -> None:
    expected, ranks = trained(task, family, 0, 1, {"engine": "torch"}), of_ranks[family]
    assert sum(view is None for view in expected["blinded"].values()) == 4  # of text alone
    assert expected["metrics"][0]["policy/approximate_kl_old"] == pytest.approx(0, abs=1e-9)
    assert expected["metrics"][1]["policy/approximate_kl_old"] > 1e-3
    for part in ("log_probs", "blinded"):
        found = {id: values for rank in ranks for id, values in rank[part].items()}
        assert found.keys() == expected[part].keys()
        for id, values in found.items():
            theirs = expected[part][id]
            assert (values is None) == (theirs is None)
            assert values is None or np.allclose(values, theirs, atol=1e-5), (part, id)
    for rank in ranks:
        for ours, one in zip(rank["metrics"], expected["metrics"], strict=True):
            assert ours == pytest.approx(one, rel=1e-3, abs=1e-5)
    ours, one = (_weights(task, family, engine) for engine in ("deepspeed", "torch"))
    for name, weight in one.items():
        # A key's bias adds as much to all keys where it is not turned: its gradient is rounding, which Adam enlarges.
        assert name.endswith("k_proj.bias") or np.allclose(ours[name], weight, rtol=0, atol=2e-5), name


def _weights(task: Path, family: str, engine: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(task / f"model_{family}_{engine}" / "model.safetensors")


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
