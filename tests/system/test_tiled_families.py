"""Families that see pictures in tiles: the real vLLM against transformers, and DeepSpeed ranks against one rank."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ral_system.types import Sample, Sampling
from tests.system.ranks import become_rank, run_ranks
from tests.tiled_models import TILED

pytestmark = pytest.mark.system

CASES = {"zero 3": {"zero_stage": 3, "sequence_parallel": 1}, "together": {"zero_stage": 0, "sequence_parallel": 2}}
METHODS = ("ral", "vppo")
SIZES = [(84, 56), (28, 28), (61, 100)]


# --- the rollout engine ---


@pytest.fixture(scope="module", params=[name for name, tiled in TILED.items() if tiled.in_vllm])
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The engine, the transformers model with its weights, and questions about pictures, videos and neither."""
    from ral_system.rollout.vllm_environment import vllm_environment
    from ral_system.tasks.visual_search import words
    from tests.system.vllm_setting import CONFIG, Setting
    from tests.unit.families.of_transformers import Bench

    with pytest.MonkeyPatch.context() as patch:
        for name, value in vllm_environment(CONFIG, threads=1, device="cpu").items():
            patch.setenv(name, value)
        tiled, folder = TILED[request.param], tmp_path_factory.mktemp(request.param)
        tiled.build(folder / "model", words())
        setting = Setting(folder / "model", folder)
        setting.prompts = Bench(folder / "model", setting.media, SIZES, videos=tiled.videos).prompts
        yield setting
        setting.engine.close()


def test_vllm_agrees_before_and_after_new_weights(setting: Any) -> None:
    """Prompt ids are those of the data pipeline, or generation raises; every published tensor is read back."""
    from ral_system.weights.manifest import verify_loaded
    from tests.system.vllm_setting import SAMPLING

    before = setting.generate()
    assert setting.largest_difference(before, SAMPLING.temperature) <= 1e-4
    mistaken = {c.id: replace(c, prompt_id="p0") for c in before.values() if c.prompt_id == "p1"}
    assert setting.largest_difference(mistaken, SAMPLING.temperature) > 1e-2  # a picture makes a difference
    weights = setting.perturbed(1)
    verify_loaded(weights.manifest, setting.engine.load_weights(weights))
    after = setting.generate()
    assert sum(after[id].token_ids != before[id].token_ids for id in before) > len(before) / 2
    assert setting.largest_difference(after, SAMPLING.temperature) <= 1e-4
    greedy = setting.generate(sampling=Sampling(completions=1, temperature=0.0, max_new_tokens=4, seed=0))
    assert setting.largest_difference(greedy, 1.0) <= 1e-4


def test_prompts_of_which_vllm_makes_other_tokens_are_refused(setting: Any) -> None:
    """Only a video of InternVL begins with text, which shares a token with a word before it."""
    family, (picture, *_) = setting.family, [m for p in setting.prompts for m in p.media if m.clip is None]
    around = ["what{}", "what {}", "what\n{}\n\n", "what{}what"]
    assert all(setting.check_expansions([text.format("<image>") for text in around], [picture]))
    if videos := [m for p in setting.prompts for m in p.media if m.clip is not None]:
        same = setting.check_expansions([text.format("<video>") for text in around], videos[:1])
        apart = "internvl" not in family.model_types
        assert same == [apart, True, True, apart]


# --- ranks ---


def scored_and_trained(
    task: Path, method: str, rank: int, world_size: int, learner: dict[str, Any], saved: Path
) -> dict[str, Any]:
    """Log-probs of this rank's samples, also of their blinded view, and metrics of two updates; the weights after them
    are saved.
    """
    from ral_system.config.commands import TrainConfig
    from ral_system.media.store import MediaStore
    from ral_system.training.learner_rank import LearnerRank
    from ral_system.training.plan import plan_updates

    config = TrainConfig.model_validate_json((task / f"{method}.json").read_text())
    whole = config.model_dump() | {"learner": config.learner.model_dump() | learner | {"world_size": world_size}}
    config = TrainConfig.model_validate(whole)
    own = LearnerRank(config, task / "model", MediaStore(task / "media"), rank, world_size, "rl")
    own.publish(0)
    samples = pickle.loads((task / "samples.pickle").read_bytes())  # noqa: S301 (this test wrote it)
    plan = plan_updates(samples, updates=2, shards=config.learner.shards, max_tokens=config.learner.pass_tokens)
    scores = own.score(plan)
    metrics = [own.update(update, scores, None) for update in plan.updates]
    own.save_model(saved)
    return {
        "metrics": metrics,
        "log-probs": {id: s.log_probs for id, s in scores.items()},
        "blinded": {id: s.blinded_log_probs for id, s in scores.items()},
    }


def work(task: Path, rank: int, world_size: int, port: int) -> None:
    """One rank; each writes what it found."""
    become_rank(rank, world_size, port)
    import torch

    for method in METHODS:
        for name, learner in CASES.items():
            settings = {"engine": "deepspeed", "offload": "none", "collective_timeout_s": 300.0, **learner}
            found = scored_and_trained(task, method, rank, world_size, settings, task / f"{method} {name} model")
            (task / f"{method} {name} {rank}.pickle").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()  # or torch's threads may end the process with an error


@pytest.fixture(scope="module", params=list(TILED))
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_config: Any) -> Path:
    """A folder with all that ranks need. Micro-batches hold one question, so at times a rank has text alone."""
    import torch

    from ral_system.media.store import MediaStore
    from ral_system.models.policy import PolicyModel
    from ral_system.tasks.visual_search import words
    from tests.unit.families.of_transformers import Bench

    folder, tiled = tmp_path_factory.mktemp(request.param), TILED[request.param]
    tiled.build(folder / "model", words())
    bench = Bench(folder / "model", MediaStore(folder / "media"), SIZES, videos=tiled.videos)
    policy, samples = PolicyModel(bench.model, bench.family, temperature=1.0), bench.samples(2)[:8]
    with torch.no_grad():
        log_probs = policy(bench.collate(samples)).log_probs
    judged: list[Sample] = []
    for i, sample in enumerate(samples):
        own = tuple(log_probs[i, : len(sample.response_token_ids)].tolist())
        judged.append(replace(sample, index=i % 2, rollout_log_probs=own, advantage=(1.0, -0.6)[i % 2]))
    for method in METHODS:
        config = make_config(
            f"algorithm={method}", "learner.learning_rate=1e-3", "learner.max_tokens=80", "rollout.temperature=1.0"
        )
        (folder / f"{method}.json").write_text(config.model_dump_json())
    (folder / "samples.pickle").write_bytes(pickle.dumps(judged))
    return folder


def test_two_ranks_train_as_one_does(commands: Any, task: Path) -> None:
    run_ranks(commands, __file__, task, 2)
    for method in METHODS:
        expected = scored_and_trained(task, method, 0, 1, {"engine": "torch"}, task / f"{method} one model")
        assert (method == "vppo") == any(values is not None for values in expected["blinded"].values())
        assert expected["metrics"][0]["policy/approximate_kl_old"] == pytest.approx(0, abs=1e-9)
        assert expected["metrics"][1]["policy/approximate_kl_old"] > 1e-3
        for name in CASES:
            ranks = [pickle.loads((task / f"{method} {name} {r}.pickle").read_bytes()) for r in range(2)]  # noqa: S301
            for part in ("log-probs", "blinded"):
                found = {id: values for rank in ranks for id, values in rank[part].items()}
                assert found.keys() == expected[part].keys()
                for id, values in found.items():
                    theirs = expected[part][id]
                    assert (values is None) == (theirs is None)
                    assert values is None or np.allclose(values, theirs, atol=5e-6), (name, part, id)
            for rank in ranks:
                for ours, one in zip(rank["metrics"], expected["metrics"], strict=True):
                    assert ours == pytest.approx(one, rel=1e-3, abs=1e-5), name
            ours, one = (_weights(task / f"{method} {of} model") for of in (name, "one"))
            assert ours.keys() == one.keys()
            for weight in ours:  # which moved by 7e-4; Adam enlarges the rounding of small gradients
                assert np.allclose(ours[weight], one[weight], rtol=0, atol=5e-5), (name, weight)


def _weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:]))
