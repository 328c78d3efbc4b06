"""A short run of the tiny model, held to committed numbers: six supervised updates, then four inner RL updates.

It has its own pictures, words and settings, so it moves only when the training code does. After a change that is
meant to move it, write it again and say why in the commit:

    RAL_WRITE_GOLDEN=1 pytest tests/unit/training/test_golden_curve.py
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ral_system.config.commands import TrainConfig
from ral_system.data.chat import ChatRenderer
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.training.learner_rank import LearnerRank
from ral_system.training.plan import plan_updates
from ral_system.types import Sample

GOLDEN = Path(__file__).parents[2] / "golden" / "curve.json"
COLOURS = {"red": (220, 40, 40), "green": (30, 160, 60), "blue": (40, 80, 220)}
PLACES = ("a1", "b1", "a2", "b2")
SETTINGS = (
    "seed=0",
    "model.freeze_vision=false",
    "sft.learning_rate=1e-3",
    "sft.betas=[0.9,0.99]",
    "sft.weight_decay=0.01",
    "sft.warmup_updates=3",
    "learner.learning_rate=1e-3",
    "learner.betas=[0.9,0.99]",
    "learner.warmup_updates=2",
    "learner.weight_decay=0.01",
    "learner.max_grad_norm=1.0",
    "rollout.temperature=0.9",
    "rollout.log_prob_gate.token=1e9",  # there is no rollout engine here to agree with
    "algorithm.updates_per_step=4",
    "algorithm.policy_loss={name: clip, clip_low: 0.2, clip_high: 0.2, dual_clip: null}",
    "algorithm.correction.kind=none",  # nor with it
    "algorithm.kl.coefficient=0.04",
    "algorithm.attention={weight: 5.0, rows: generated, reduction: token_mean}",
)


def draw(renderer: ChatRenderer, media: MediaStore, index: int) -> Sample:
    """Four coloured cells; what colour is one of them? Every third response names all cells, so lengths differ."""
    names = [list(COLOURS)[(index * step + step // 2) % 3] for step in (1, 2, 5, 7)]
    picture = Image.new("RGB", (56, 56))
    for n, name in enumerate(names):
        picture.paste(COLOURS[name], (n % 2 * 28, n // 2 * 28, n % 2 * 28 + 28, n // 2 * 28 + 28))
    asked = index % 4
    prompt = renderer.prompt(
        id=f"golden/{index}",
        kind="",
        question=f"what is at {PLACES[asked]} ?",
        answer=names[asked],
        media=[media.put(picture)],
    )
    thought = " ".join(f"{p} {n}" for p, n in zip(PLACES, names, strict=True)) if index % 3 == 0 else PLACES[asked]
    return Sample(prompt.id, prompt, renderer.response(f"<think> {thought} </think> <answer> {names[asked]} </answer>"))


def run(config: TrainConfig, folder: Path) -> list[dict[str, float]]:
    words = ["answer", "what", "is", "at", "?", *PLACES, *COLOURS]
    build_tiny_model(folder / "model", words, hidden=64, layers=2, vision_layers=1, seed=0)
    media, renderer = MediaStore(folder / "media"), ChatRenderer(load_family(folder / "model"), "answer")

    learner = LearnerRank(config, folder / "model", media, rank=0, world_size=1, stage="sft")
    demonstrations = [draw(renderer, media, i) for i in range(6 * 8)]
    plan = plan_updates(demonstrations, updates=6, shards=1, max_tokens=80)
    curve = [learner.fit(update) for update in plan.updates]
    learner.save_model(folder / "sft")

    learner = LearnerRank(config, folder / "sft", media, rank=0, world_size=1, stage="rl")
    samples = [
        replace(sample, advantage=(1.2, -0.8, 0.5, -0.9)[(i + i // 4) % 4])
        for i, sample in enumerate(draw(renderer, media, 100 + i) for i in range(16))
    ]
    samples = [replace(s, rollout_log_probs=(-1.0,) * len(s.response_token_ids)) for s in samples]
    plan = plan_updates(samples, updates=4, shards=1, max_tokens=80)
    old = learner.score(plan)
    return curve + [learner.update(update, old, old) for update in plan.updates]


@pytest.mark.usefixtures("one_thread")
def test_curve_is_the_committed_one(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    found = run(make_config(*SETTINGS), tmp_path)
    if os.environ.get("RAL_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert len(found) == len(golden) == 10
    for update, (metrics, expected) in enumerate(zip(found, golden, strict=True)):
        assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-7), f"update {update}"
    assert golden[5]["supervised/loss"] < 0.7 * golden[0]["supervised/loss"]  # the curve is one of learning
    assert golden[6]["attention/divergence_negative"] == 0 < golden[9]["attention/divergence_negative"]
