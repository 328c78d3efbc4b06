"""Adapters under DeepSpeed on two gloo ranks against the torch engine, whatever ZeRO does with them.

The ranks are started once and go through all cases; this file is also what they run.
"""

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.system.ranks import become_rank, run_ranks

pytestmark = pytest.mark.system

TEXT = "learner.lora={rank: 4, alpha: 8, targets: [q_proj, k_proj, down_proj], vision: false}"
VISION = "learner.lora={rank: 4, alpha: 8, targets: [q_proj, k_proj, qkv, mlp.0], vision: true}"
CASES: list[tuple[int, str, bool, str]] = [
    (0, "text", False, "none"),
    (1, "vision", True, "none"),
    (2, "text", True, "none"),
    (3, "text", True, "none"),
    (3, "vision", False, "none"),
    (3, "text", False, "optimizer_and_parameters"),
]
"""ZeRO stage, where adapters are, gradient checkpointing and offload."""
ALWAYS = CASES[2:5]
"""Cases that `make test` goes through; the others are long."""


def train(
    task: Path, rank: int, world_size: int, engine: str, stage: int, where: str, checkpointing: bool, offload: str
) -> dict[str, Any]:
    """Two updates, memory that leaves the device and comes back, save, a third; a new learner loads, and makes the
    third.
    """
    from ral_system.config.commands import TrainConfig
    from ral_system.media.store import MediaStore
    from ral_system.training.learner_rank import LearnerRank
    from ral_system.training.optim import optimizer_state
    from ral_system.training.plan import plan_updates
    from ral_system.types import Held
    from tests.offered import read_whole

    folders = json.loads((task / "folders.json").read_text())
    config = TrainConfig.model_validate_json((task / f"{where}.json").read_text())
    learner = {"engine": engine, "world_size": world_size, "gradient_checkpointing": checkpointing}
    own = {"zero_stage": stage, "offload": offload, "sequence_parallel": 1, "collective_timeout_s": 300.0}
    learner |= own if engine == "deepspeed" else {}
    whole = TrainConfig.model_validate(config.model_dump() | {"learner": config.learner.model_dump() | learner})
    samples = pickle.loads((task / "samples.pickle").read_bytes())  # noqa: S301 (this test wrote it)
    plan = plan_updates(samples, updates=3, shards=world_size, max_tokens=learner_tokens(engine))

    def start() -> LearnerRank:
        return LearnerRank(whole, Path(folders["model"]), MediaStore(Path(folders["media"])), rank, world_size, "rl")

    trained = start()
    first = published(trained, 0)
    scores, reference = trained.score(plan), trained.score_reference(plan)
    metrics = [trained.update(update, scores, reference) for update in plan.updates[:2]]
    if engine == "deepspeed" and offload != "optimizer_and_parameters":  # as a rank that shares its GPU, twice
        before = read_whole(trained, 0)
        for _ in range(2):
            trained.hold(Held.WEIGHTS)
            assert read_whole(trained, 0) == before
            trained.hold(Held.NOTHING)
            away = trained._engine._memory._host._away.keys()  # type: ignore[attr-defined]
            inner = trained._engine._engine.optimizer  # type: ignore[attr-defined]
            states = optimizer_state(getattr(inner, "optimizer", inner))
            assert states and states.keys() <= away
            trained.hold(Held.ALL)
        assert read_whole(trained, 0) == before
        if trained._vision is not None:  # what the frozen encoder had made is gone; else score makes it
            trained._vision.encode([plan.rank_samples(other) for other in range(world_size)], rank)
    saved = task / f"{engine}_{stage}_{where}_{checkpointing}_{offload}"
    trained.save(saved)
    metrics.append(trained.update(plan.updates[2], scores, reference))
    last = published(trained, 3)
    resumed = start()
    resumed.load(saved)
    moved = resumed.score(plan)
    metrics.append(resumed.update(plan.updates[2], scores, reference))
    again = published(resumed, 3)
    resumed.save_model(task / f"model_{saved.name}")
    return {
        "metrics": metrics,
        "reference": {id: s.log_probs for id, s in reference.items()},
        "reference_again": {id: s.log_probs for id, s in resumed.score_reference(plan).items()},
        "moved": {id: s.log_probs for id, s in moved.items()},
        "weights": [first, last, again],
        "bytes": sum(file.stat().st_size for file in saved.rglob("*") if file.is_file()),
    }


def published(learner: Any, version: int) -> dict[str, np.ndarray] | None:
    """Publish a version, and return all of its weights on rank 0."""
    from ral_system.models.named_weights import named_weights

    names = list(learner._adapters.parts(named_weights(learner._engine.policy.model)))
    manifest = learner.publish(version)
    read, offer = learner.offer(manifest, names)
    if manifest is None or offer is None:
        return None
    assert list(manifest.tensors) == list(read) == names
    return dict(offer.arrays)


def learner_tokens(engine: str) -> int:
    """Tokens per pass: fewer for one of the engines, so its micro-batches are others."""
    return 400 if engine == "torch" else 200


def work(task: Path, rank: int, world_size: int, port: int) -> None:
    """One rank: every case, one after the other; rank 0 writes the results."""
    become_rank(rank, world_size, port)
    cases = [tuple(case) for case in json.loads((task / "cases.json").read_text())]
    found = {case: train(task, rank, world_size, "deepspeed", *case) for case in cases}
    if rank == 0:
        (task / "found.pickle").write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, media: Any, rl_samples: Any, make_config: Any):
    """A folder with all that ranks need."""
    folder = tmp_path_factory.mktemp("deepspeed_lora")
    settings = (
        *("stages=[rl]", "learner.learning_rate=1e-2", "learner.warmup_updates=0", "algorithm.kl.coefficient=0.1"),
        *("algorithm.attention.weight=5", "algorithm.attention.anchor=ema", "algorithm.attention.ema_decay=0.5"),
        "rollout.log_prob_gate.token=1e9",
    )
    for name, lora in (("text", TEXT), ("vision", VISION)):
        (folder / f"{name}.json").write_text(make_config(*settings, lora).model_dump_json())
    (folder / "folders.json").write_text(json.dumps({"model": str(tiny_model), "media": str(media.folder)}))
    (folder / "samples.pickle").write_bytes(pickle.dumps([replace(s, weight_version=0) for s in rl_samples]))
    return folder


@pytest.fixture(scope="module")
def expected(task: Path) -> dict[str, dict[str, Any]]:
    """Train the torch engine on the same samples, by where the adapters are."""
    return {where: train(task, 0, 1, "torch", 0, where, False, "none") for where in ("text", "vision")}


@pytest.fixture(scope="module")
def world(commands: Any, task: Path, request: pytest.FixtureRequest) -> dict[tuple, dict[str, Any]]:
    """Results of the cases that the chosen tests are about."""
    items = [item for item in request.session.items if item.path == Path(__file__)]
    chosen = [case for case in CASES if any(item.callspec.params["case"] == case for item in items)]  # type: ignore[attr-defined]
    (task / "cases.json").write_text(json.dumps(chosen))
    run_ranks(commands, __file__, task, 2)
    return pickle.loads((task / "found.pickle").read_bytes())  # noqa: S301


PARAMETERS = [
    pytest.param(case, marks=() if case in ALWAYS else pytest.mark.long, id="-".join(map(str, case))) for case in CASES
]


@pytest.mark.parametrize("case", PARAMETERS)
def test_trains_adapters_as_the_torch_engine(world: dict, expected: dict, case: tuple) -> None:
    found, theirs = world[case], expected[case[1]]
    for which, apart in (("reference", 2e-6), ("moved", 2e-5)):
        assert found[which].keys() <= theirs[which].keys() and len(found[which]) == 6  # this rank's half
        for id, log_probs in found[which].items():
            assert np.allclose(log_probs, theirs[which][id], atol=apart), (which, id)
    for ours, torchs in zip(found["metrics"], theirs["metrics"], strict=True):
        assert ours == pytest.approx(torchs, rel=1e-4, abs=1e-5)
    assert theirs["metrics"][2]["policy/kl"] > 1e-4
    start, ours = found["weights"][:2]
    changed = {name for name in start if not np.array_equal(start[name], ours[name])}
    expected_parts = {"q_proj", "k_proj"} | ({"qkv", "0"} if case[1] == "vision" else {"down_proj"})
    assert {name.split(".")[-2] for name in changed} == expected_parts
    for name, array in theirs["weights"][1].items():
        step = np.linalg.norm(array - start[name])
        assert np.linalg.norm(ours[name] - array) <= 1e-2 * step + 1e-7, name


@pytest.mark.parametrize("case", PARAMETERS)
def test_adapters_continue_bit_by_bit_and_the_reference_stays(world: dict, case: tuple) -> None:
    found = world[case]
    assert found["metrics"][3] == found["metrics"][2]
    _, last, again = found["weights"]
    assert all(np.array_equal(last[name], again[name]) for name in last)
    for id, log_probs in found["reference"].items():
        assert np.array_equal(found["reference_again"][id], log_probs)
        assert not np.array_equal(found["moved"][id], log_probs)
    whole = sum(array.nbytes for array in last.values())
    assert found["bytes"] < whole / 2


@pytest.mark.parametrize("case", PARAMETERS)
def test_the_exported_model_is_the_published_one(task: Path, world: dict, case: tuple) -> None:
    from peft import PeftModel

    from ral_system.models.loading import load_model

    folder = task / "model_deepspeed_{}_{}_{}_{}".format(*case)
    state, published = load_model(folder, dtype="float32").state_dict(), world[case]["weights"][2]
    assert state.keys() == published.keys()
    assert all(np.array_equal(state[name].numpy(), array) for name, array in published.items())
    start = load_model(Path(json.loads((task / "folders.json").read_text())["model"]), dtype="float32")
    merged = PeftModel.from_pretrained(start, str(folder / "adapter")).merge_and_unload().state_dict()
    assert all(np.allclose(merged[name].numpy(), array, rtol=1e-5, atol=1e-6) for name, array in published.items())


if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
