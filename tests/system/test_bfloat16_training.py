"""Training in bfloat16 on two gloo ranks, with gradient checkpointing and frozen vision; ZeRO-3 is the 7B recipe's.

This file is also what the ranks run.
"""

import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ral_system.types import Sample
from tests.system.ranks import become_rank, run_ranks

pytestmark = pytest.mark.system

RANKS, STAGES = 2, (2, 3)


def work(task: Path, rank: int, world_size: int, port: int) -> None:
    """One rank, every ZeRO stage; rank 0 writes the results."""
    become_rank(rank, world_size, port)
    found = {stage: train(task, rank, stage) for stage in STAGES}
    if rank == 0:
        (task / "found.pickle").write_bytes(pickle.dumps(found))


def train(task: Path, rank: int, stage: int) -> dict[str, Any]:
    """The gradient of an update and of each of its parts; then two updates, a checkpoint, and a third."""
    from deepspeed.utils import safe_get_full_grad

    from ral_system.config.commands import TrainConfig
    from ral_system.media.store import MediaStore
    from ral_system.training.learner_rank import LearnerRank
    from ral_system.training.plan import plan_updates
    from ral_system.types import Held, TrainPlan, UpdatePlan
    from tests.offered import read_whole

    folders = json.loads((task / "folders.json").read_text())
    config = TrainConfig.model_validate_json((task / "config.json").read_text())
    config = config.model_copy(update={"learner": config.learner.model_copy(update={"zero_stage": stage})})
    samples = pickle.loads((task / "samples.pickle").read_bytes())  # noqa: S301 (this test wrote it)
    trained = LearnerRank(config, Path(folders["model"]), MediaStore(Path(folders["media"])), rank, RANKS, "rl")
    engine: Any = trained._engine
    named = [(name, p) for name, p in engine.policy.named_parameters() if p.requires_grad]
    step, gradients = engine.step, []

    def watched() -> float:
        gradients.append({name: safe_get_full_grad(p).double().numpy() for name, p in named})  # every rank gathers
        return step()

    def planned(updates: int) -> TrainPlan:
        return plan_updates(samples, updates=updates, shards=RANKS, max_tokens=1)

    read_whole(trained, 0)
    whole = planned(1)
    scores = trained.score(whole)
    settings, engine._settings = engine._settings, replace(engine._settings, learning_rate=0.0)
    engine.step = watched
    (update,) = whole.updates
    trained.update(update, scores, scores)
    for i in range(len(update.shards[0])):
        part = UpdatePlan(tuple((shard[i],) for shard in update.shards), update.counts)
        trained.update(part, scores, scores)
    engine.step, engine._settings = step, settings

    plan = planned(3)
    scores = trained.score(plan)
    metrics = [trained.update(u, scores, scores) for u in plan.updates[:2]]
    middle = read_whole(trained, 1)
    trained.save(task / f"saved_{stage}")
    metrics.append(trained.update(plan.updates[2], scores, scores))
    last = read_whole(trained, 2)
    trained.load(task / f"saved_{stage}")
    reloaded = read_whole(trained, 1)
    for held in (Held.WEIGHTS, Held.NOTHING, Held.ALL):
        trained.hold(held)
    assert trained._vision is not None
    trained._vision.encode([plan.rank_samples(other) for other in range(RANKS)], rank)  # forgotten; else score does
    metrics.append(trained.update(plan.updates[2], scores, scores))
    again = read_whole(trained, 2)
    return {
        "metrics": metrics,
        "gradients": gradients,
        "weights": [dict(w.tensors) for w in (middle, last, reloaded, again) if w is not None],
        "buffers": {name: str(buffer.dtype) for name, buffer in engine.policy.named_buffers()},
        "dtypes": {tensor.dtype for tensor in last.tensors.values()} if last is not None else set(),
    }


@pytest.fixture(scope="module")
def by_stage(
    commands: Any,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    media: Any,
    draw_samples: Callable[[int], list[Sample]],
    make_config: Any,
) -> dict[int, dict[str, Any]]:
    """Train at each ZeRO stage; the results of rank 0."""
    task = tmp_path_factory.mktemp("bfloat16")
    config = make_config(
        "learner={zero_stage: 3, max_tokens: 1, gradient_checkpointing: true, dtype: bfloat16}",
        f"learner={{world_size: {RANKS}, learning_rate: 1e-3, warmup_updates: 0}}",
        "rollout=vllm",
        "learner=deepspeed",
        "rollout.dtype=bfloat16",
        "rollout.log_prob_gate={token: 1e9, outliers: 0.1}",  # there is no rollout engine to agree with
        "algorithm.attention={weight: 5, gradient_share_every: 0}",
        "algorithm.kl.coefficient=0",
        "algorithm.correction.kind=none",
        "model.freeze_vision=true",
        "cluster=ray",
    )
    samples = [
        replace(s, rollout_log_probs=(-1.0,) * len(s.response_token_ids), advantage=(1.0, -0.7, 0.4, -1.3)[i % 4])
        for i, s in enumerate(draw_samples(24))
    ]
    (task / "config.json").write_text(config.model_dump_json())
    (task / "folders.json").write_text(json.dumps({"model": str(tiny_model), "media": str(media.folder)}))
    (task / "samples.pickle").write_bytes(pickle.dumps(samples))
    run_ranks(commands, __file__, task, RANKS)
    return pickle.loads((task / "found.pickle").read_bytes())  # noqa: S301


@pytest.fixture(params=STAGES, ids=lambda stage: f"zero{stage}")
def found(by_stage: dict[int, dict[str, Any]], request: pytest.FixtureRequest) -> dict[str, Any]:
    return by_stage[request.param]


def test_gradients_add_up_in_float32(found: dict[str, Any]) -> None:
    """Twelve micro-batches a rank: a sum in bfloat16 would lose what is below 1/256 of it."""
    whole, *parts = found["gradients"]
    assert len(parts) == 12
    norm = np.sqrt(sum((g**2).sum() for g in whole.values()))
    apart = np.sqrt(sum(((g - sum(part[n] for part in parts)) ** 2).sum() for n, g in whole.items()))
    assert norm > 0.1
    assert apart < 1e-5 * norm


def test_the_first_update_attends_exactly_as_the_old_policy_did(found: dict[str, Any]) -> None:
    divergences = [metrics["attention/divergence"] for metrics in found["metrics"]]
    assert divergences[0] == 0.0
    assert divergences[1] > 1e-6


def test_it_continues_from_what_it_saved(found: dict[str, Any]) -> None:
    assert found["metrics"][3] == found["metrics"][2]
    middle, last, reloaded, again = found["weights"]
    assert middle == reloaded and last == again


def test_vision_stays_as_it_is_and_words_move(found: dict[str, Any]) -> None:
    middle, last, *_ = found["weights"]
    moved = {name for name in last if middle[name] != last[name]}
    assert not any("visual" in name for name in moved)
    assert len(moved) > 10


def test_weights_are_published_in_bfloat16_and_rotary_frequencies_kept_in_float32(found: dict[str, Any]) -> None:
    assert found["dtypes"] == {"bfloat16"}
    frequencies = {name: dtype for name, dtype in found["buffers"].items() if name.endswith("inv_freq")}
    assert frequencies and set(frequencies.values()) == {"torch.float32"}


if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
