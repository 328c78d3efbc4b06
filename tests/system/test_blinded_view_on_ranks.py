"""VPPO and VGPO on two DeepSpeed ranks: one rank's numbers, whether they share batches or sequences."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ral_system.types import Prompt, Sample
from tests.system.ranks import become_rank, run_ranks

pytestmark = pytest.mark.system

CASES = {"zero 3": {"zero_stage": 3, "sequence_parallel": 1}, "together": {"zero_stage": 0, "sequence_parallel": 2}}
METHODS = ("vppo", "vgpo")


def scored_and_trained(task: Path, method: str, rank: int, world_size: int, learner: dict[str, Any]) -> dict[str, Any]:
    """Return what this rank's samples depend on, and metrics of two updates."""
    from ral_system.config.commands import TrainConfig
    from ral_system.media.store import MediaStore
    from ral_system.training.learner_rank import LearnerRank
    from ral_system.training.plan import plan_updates

    folders = json.loads((task / "folders.json").read_text())
    config = TrainConfig.model_validate_json((task / f"{method}.json").read_text())
    whole = config.model_dump() | {"learner": config.learner.model_dump() | learner | {"world_size": world_size}}
    config = TrainConfig.model_validate(whole)
    own = LearnerRank(config, Path(folders["model"]), MediaStore(Path(folders["media"])), rank, world_size, "rl")
    own.publish(0)
    samples = pickle.loads((task / "samples.pickle").read_bytes())  # noqa: S301 (this test wrote it)
    plan = plan_updates(samples, updates=2, shards=config.learner.shards, max_tokens=config.learner.pass_tokens)
    scores = own.score(plan)
    return {
        "metrics": [own.update(update, scores, None) for update in plan.updates],
        "views": {id: s.blinded_log_probs if method == "vppo" else s.visual_similarity for id, s in scores.items()},
        "factors": {id: s.advantage_factor for id, s in scores.items()},
        "token factors": {id: s.token_factors for id, s in scores.items()},
    }


def work(task: Path, rank: int, world_size: int, port: int) -> None:
    """One rank; each writes what it found."""
    become_rank(rank, world_size, port)
    for method in METHODS:
        for name, learner in CASES.items():
            settings = {"engine": "deepspeed", "offload": "none", "collective_timeout_s": 300.0, **learner}
            found = scored_and_trained(task, method, rank, world_size, settings)
            (task / f"{method} {name} {rank}.pickle").write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def task(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, media: Any, rl_samples: list[Sample], make_config: Any
) -> Path:
    """A folder with all that ranks need. One question of four has no picture, so a rank may have no blinded view."""
    folder = tmp_path_factory.mktemp("blinded")
    samples = []
    for i, sample in enumerate(rl_samples[:8]):
        prompt = sample.prompt
        if i % 4 == 3:
            prompt = Prompt(prompt.id, "", "?", "", (), rl_samples[0].response_token_ids[:3])
        for n in range(2):
            ids, log_probs = sample.response_token_ids[n:], sample.rollout_log_probs[n:]
            samples.append(replace(sample, id=f"{i}#{n}", prompt=prompt, response_token_ids=ids, index=n))
            samples[-1] = replace(samples[-1], rollout_log_probs=log_probs, advantage=(1.0, -0.6)[n])
    config: Callable[..., Any] = make_config
    settings = ("learner.learning_rate=1e-3", "learner.max_tokens=150", "rollout.log_prob_gate.token=1e9")
    for method in METHODS:
        (folder / f"{method}.json").write_text(config(f"algorithm={method}", *settings).model_dump_json())
    (folder / "folders.json").write_text(json.dumps({"model": str(tiny_model), "media": str(media.folder)}))
    (folder / "samples.pickle").write_bytes(pickle.dumps(samples))
    return folder


@pytest.fixture(scope="module")
def of_ranks(commands: Any, task: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Run all ranks; the results of each, by method and case."""
    run_ranks(commands, __file__, task, 2)
    return {
        (method, name): [
            pickle.loads((task / f"{method} {name} {rank}.pickle").read_bytes())  # noqa: S301
            for rank in range(2)
        ]
        for method in METHODS
        for name in CASES
    }


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_find_what_one_does(
    task: Path, of_ranks: dict[tuple[str, str], list[dict[str, Any]]], method: str
) -> None:
    expected = scored_and_trained(task, method, 0, 1, {"engine": "torch"})
    assert len(set(expected["factors"].values())) >= {"vppo": 8, "vgpo": 2}[method]  # of pairs, the lower and higher
    assert sum(view is None for view in expected["views"].values()) == 4
    for name in CASES:
        ranks = of_ranks[method, name]
        found = {id: view for rank in ranks for id, view in rank["views"].items()}
        assert found.keys() == expected["views"].keys()
        for rank in ranks:
            for part, atol in (("views", 2e-6), ("token factors", 1e-4)):
                for id, values in rank[part].items():
                    theirs = expected[part][id]
                    assert (values is None) == (theirs is None)
                    assert values is None or np.allclose(values, theirs, atol=atol), (name, part, id)
            theirs = {id: expected["factors"][id] for id in rank["factors"]}
            assert rank["factors"] == pytest.approx(theirs, rel=1e-4)
            for ours, one in zip(rank["metrics"], expected["metrics"], strict=True):
                assert ours == pytest.approx(one, rel=1e-4, abs=5e-6), name


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
