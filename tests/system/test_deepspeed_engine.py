"""DeepSpeed on gloo ranks against the torch engine: same losses, gradients and weights, whatever ZeRO does with them.

Each world of ranks is started once and goes through all its configurations; this file is also what the ranks run.
"""

import json
import pickle
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ral_system.errors import SetupError
from ral_system.types import Credit, Held, Sample, Switches, TrainPlan
from tests.system.ranks import become_rank, run_ranks

pytestmark = pytest.mark.system

UPDATES = 3
Case = tuple[int, int, str, int]
"""ZeRO stage, tokens a pass, offload, and ranks that hold a micro-batch together."""
ALL_OF_IT = "optimizer_and_parameters"
CASES: dict[int, list[Case]] = {  # 6 prompts of 2 responses over 3 updates
    1: [(stage, max_tokens, "none", 1) for stage in (0, 1, 2, 3) for max_tokens in (400, 1)],
    2: [
        *[(0, 200, "none", 1), (2, 1, "none", 1), (3, 200, "none", 1), (3, 1, "none", 1)],
        *[(1, 200, "optimizer", 1), (2, 200, "optimizer", 1), (3, 1, "optimizer", 1), (3, 1, ALL_OF_IT, 1)],
        *[(0, 200, "none", 2), (1, 1, "none", 2), (2, 200, "optimizer", 2), (3, 1, "none", 2)],
    ],
    4: [(0, 200, "none", 2), (3, 1, "none", 2)],
}
ALWAYS = {
    1: [(0, 400, "none", 1), (3, 1, "none", 1)],
    2: [
        *[(0, 200, "none", 1), (2, 1, "none", 1), (3, 200, "none", 1), (2, 200, "optimizer", 1), (3, 1, ALL_OF_IT, 1)],
        (3, 1, "none", 2),
    ],
    4: [],
}
"""Cases that `make test` goes through; the others are long."""
LOSSES_AT = ((0, "none", 1), (3, "none", 1), (0, "none", 2))
"""ZeRO stages, offloads and ranks together with which every policy loss is tried."""


def test_a_meeting_point_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from ral_system.training.deepspeed_engine import DeepSpeedEngine

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for name, value in rank.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(
            SetupError, match=rf"^the learner ranks cannot meet at 127.0.0.1:{port} \(.*in use"
        ) as error:
            DeepSpeedEngine(None, None, None, torch.device("cpu"), 5)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def published(learner: Any, version: int) -> Mapping[str, np.ndarray] | None:
    """All weights of a version, as rank 0 offers them; None on the others."""
    import torch

    from ral_system.models.named_weights import named_weights
    from tests.offered import manifest_of

    names = list(named_weights(learner._engine.policy.model))
    manifest = learner.publish(version)
    read, offer = learner.offer(manifest, names)
    if manifest is None or offer is None:
        return None
    assert read == manifest_of(version, {n: torch.from_numpy(array) for n, array in offer.arrays.items()}).tensors
    return dict(offer.arrays)


def train(
    task: Path,
    rank: int,
    world_size: int,
    engine: str,
    stage: int,
    max_tokens: int,
    offload: str = "none",
    together: int = 1,
) -> dict[str, Any]:
    """Two updates, save, a third; load, and the third again; then one with every policy loss and one by the group's
    anchor, and a batch that several versions made. With offload, the third once more by an engine without it, and by
    this one from that one's state. Metrics, and the published weights at each point.
    """
    import torch

    from ral_system.config.commands import TrainConfig
    from ral_system.media.store import MediaStore
    from ral_system.training.learner_rank import LearnerRank
    from ral_system.training.optim import optimizer_state
    from ral_system.training.plan import plan_updates

    folders = json.loads((task / "folders.json").read_text())
    config = TrainConfig.model_validate_json((task / "config.json").read_text())
    learner = {"engine": engine, "max_tokens": max_tokens, "world_size": world_size}
    if engine == "deepspeed":
        learner |= {"zero_stage": stage, "offload": offload, "sequence_parallel": together}
        learner |= {"collective_timeout_s": 250.0 if world_size > 1 else 300.0}
    samples = pickle.loads((task / "samples.pickle").read_bytes())  # noqa: S301 (this test wrote it)

    def start(settings: dict[str, Any]) -> LearnerRank:
        whole = config.model_dump() | {"learner": config.learner.model_dump() | settings}
        model, media = Path(folders["model"]), MediaStore(Path(folders["media"]))
        return LearnerRank(TrainConfig.model_validate(whole), model, media, rank, world_size, "rl")

    def planned(samples: list[Sample]) -> TrainPlan:
        return plan_updates(samples, updates=UPDATES, shards=world_size // together, max_tokens=max_tokens * together)

    plan, trained = planned(samples), start(learner)
    published(trained, 0)
    scores = trained.score(plan)
    metrics = [trained.update(update, scores, scores) for update in plan.updates[:2]]
    assert (trained.work().tokens > 0) == (rank % together == 0)  # a micro-batch counts once
    saved = task / f"{engine}_{world_size}_{stage}_{max_tokens}_{offload}_{together}"
    if engine == "deepspeed" and offload != ALL_OF_IT:  # memory leaves the device and comes back, twice
        for _ in range(2):
            trained.hold(Held.WEIGHTS)
            trained.publish(2)
            trained.hold(Held.NOTHING)
            inner = trained._engine._engine.optimizer  # type: ignore[attr-defined]
            states = optimizer_state(getattr(inner, "optimizer", inner))
            assert states and states.keys() <= trained._engine._memory._host._away.keys()  # type: ignore[attr-defined]
            trained.hold(Held.ALL)
    middle = published(trained, 2)
    trained.save(saved)
    metrics.append(trained.update(plan.updates[2], scores, scores))
    last = published(trained, 3)
    trained.load(saved)
    reloaded = published(trained, 2)
    averaged = trained.score(planned([replace(s, weight_version=2) for s in samples]))
    metrics.append(trained.update(plan.updates[2], scores, scores))
    again = published(trained, 3)
    trained.save_model(task / f"model_{saved.name}")

    made: list[tuple[int, Switches]] = [(3, ()), (0, ((1, 2),)), (2, ()), (0, ((1, 3),))]  # unlike on the two ranks
    mixed = trained.score(
        planned([replace(s, weight_version=made[i % 4][0], switches=made[i % 4][1]) for i, s in enumerate(samples)])
    )
    off_policy = planned(pickle.loads((task / "mismatched.pickle").read_bytes()))  # noqa: S301
    losses, points = {}, {"middle": middle, "last": last, "reloaded": reloaded, "again": again}
    on_host, moved = None, []
    if offload != "none":
        inner = trained._engine._engine  # type: ignore[attr-defined]
        on_host = (inner.zero_use_cpu_optimizer(), getattr(inner.optimizer, "offload_param", False))
        on_device = start(learner | {"offload": "none"})
        on_device.load(saved)
        on_device.save(task / f"moved_{saved.name}")
        trained.load(task / f"moved_{saved.name}")
        for learner_rank in (on_device, trained):
            third = learner_rank.update(plan.updates[2], scores, scores)
            moved.append((third, published(learner_rank, 3)))
    for i, loss in enumerate(sorted(task.glob("loss_*.json")) if (stage, offload, together) in LOSSES_AT else ()):
        trained.load(saved)
        trained._config = TrainConfig.model_validate_json(loss.read_text())
        losses[loss.stem] = trained.update(off_policy.updates[i % UPDATES], scores, scores)
        points[loss.stem] = published(trained, 4 + i)

    if engine == "deepspeed":  # also of groups that DeepSpeed has made for itself, up to here
        groups = [group._get_backend(torch.device("cpu")) for group in torch.distributed.distributed_c10d._world.pg_map]
        assert len(groups) >= 2
        assert {group.options._timeout.total_seconds() for group in groups} == {learner["collective_timeout_s"]}
    refusals = []
    if world_size == 1 and engine == "deepspeed":
        planted = type("", (), {"__reduce__": lambda _: (Path.touch, (task / "trace",))})()  # leaves it when unpickled
        for file in sorted((saved / "state").glob("*.pt")):
            whole = file.read_bytes()
            torch.save({"planted": planted}, file)
            try:
                trained.load(saved)
            except pickle.UnpicklingError as error:
                refusals.append((file.name, "Weights only load failed" in str(error)))
            file.write_bytes(whole)
    return {
        "metrics": metrics,
        "losses": losses,
        "mixed_log_probs": {id: s.log_probs for id, s in mixed.items()},
        "log_probs": {id: s.log_probs for id, s in scores.items()},
        "old_rows": {id: s.attention[0].values for id, s in scores.items()},
        "averaged_rows": {id: s.attention[0].values for id, s in averaged.items()},
        "weights": points,
        "on_host": on_host,
        "moved": moved,
        "refusals": refusals,
        "files": sorted(f.name for f in (saved / "state").glob("*.pt")),
    }


def read_in_tiles() -> None:
    """Let the head read distributions in tiles, not alike on two ranks, where there is too little for them."""
    from ral_system.algorithms import tiled_head

    tiled_head.DENSE_BYTES, tiled_head.tile_shape = 0, lambda tokens, hidden: (7, 50)


def work(task: Path, rank: int, world_size: int, port: int) -> None:
    """One rank: every configuration of its world, one after the other; rank 0 writes the results."""
    become_rank(rank, world_size, port)
    if world_size > 1:
        read_in_tiles()
    cases = [tuple(case) for case in json.loads((task / f"world_{world_size}.json").read_text())]
    found = {case: train(task, rank, world_size, "deepspeed", *case) for case in cases}
    if rank == 0:
        (task / f"world_{world_size}.pickle").write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, media: Any, draw_samples: Any, make_config: Any):
    """A folder with all that ranks need: config, where model and media are, samples with true rollout log-probs.

    Of four samples one is about a picture, one is text alone, one about a video and one about both: micro-batches that
    are not alike on two ranks, which under ZeRO-3 gather parameters together.
    """
    import torch

    from ral_system.attention.read import AttentionRead
    from ral_system.batches.collate import Collator
    from ral_system.data.chat import ChatRenderer
    from ral_system.media.videos import VideoLimits
    from ral_system.scoring.build import build_policy
    from ral_system.types import VideoSampling
    from tests.unit.media.clips import clip, noise
    from tests.unit.training.learners import PRESETS, mismatched

    folder = tmp_path_factory.mktemp("deepspeed")
    settings = (
        *("learner.learning_rate=1e-3", "learner.warmup_updates=4"),
        "learner.rate_factors={vision: 0.5, projector: 2}",
        "learner.max_grad_norm=0.5",  # gradients are larger: clipping takes part
        "algorithm.attention.weight=5",
        "algorithm.attention.anchor=ema",  # at the first scoring the policy itself
        "algorithm.attention.ema_decay=0.5",
        "algorithm.attention.max_gradient_share=0.05",
        "algorithm.max_staleness=3",
        "rollout.log_prob_gate.token=1e9",  # scored again with other weights than the samples were made with
    )
    config = make_config(*settings)
    policy = build_policy(
        tiny_model, torch.device("cpu"), AttentionRead(), dtype="float32", temperature=config.rollout.temperature
    )
    collate, renderer = Collator(policy.family, media), ChatRenderer(policy.family, "answer")
    video = media.put_video(clip(noise(7, 4, 56, 84)), VideoSampling(1.0, 4, 2), VideoLimits())
    samples = []
    for i, sample in enumerate(draw_samples(6)):
        p = sample.prompt
        about = [p.media, (), (video,), (*p.media, video)][i % 4]
        prompt = renderer.prompt(id=p.id, kind=p.kind, question=p.question, answer=p.answer, media=about)
        for n, ids in enumerate((sample.response_token_ids, sample.response_token_ids[i + 1 :])):
            sample = replace(sample, id=f"{p.id}#{n}", prompt=prompt, response_token_ids=ids)
            with torch.no_grad():
                log_probs = policy(collate((sample,))).log_probs[0].tolist()
            advantage = (1.0, -0.7, 0.4, -1.3)[(i + 2 * n) % 4]
            judged = {"advantage": advantage, "credit": Credit(advantage, *[(0.5, -0.5)] * 2)}
            samples.append(replace(sample, index=n, rollout_log_probs=tuple(log_probs), **judged))
    (folder / "config.json").write_text(config.model_dump_json())
    for name in PRESETS:
        with_loss = make_config(*settings, f"algorithm/policy_loss={name}", "algorithm.entropy_coefficient=0.1")
        (folder / f"loss_{name}.json").write_text(with_loss.model_dump_json())
    own = [setting for setting in settings if "anchor" not in setting and "ema" not in setting]
    by_looks = make_config("algorithm=group_anchor", *own).model_dump_json()  # different ranks score a group's members
    (folder / "loss_group_anchor.json").write_text(by_looks)
    (folder / "mismatched.pickle").write_bytes(pickle.dumps(mismatched(policy, collate, samples)))
    (folder / "folders.json").write_text(json.dumps({"model": str(tiny_model), "media": str(media.folder)}))
    (folder / "samples.pickle").write_bytes(pickle.dumps(samples))
    return folder


@pytest.fixture(scope="module")
def expected(task: Path) -> dict[str, Any]:
    """Train the torch engine on the same samples."""
    return train(task, 0, 1, "torch", 0, 4)


@pytest.fixture(scope="module")
def worlds(commands: Any, task: Path, request: pytest.FixtureRequest) -> dict[int, dict[Case, dict[str, Any]]]:
    """Results by world size, of the configurations that the chosen tests are about."""
    found = {}
    chosen = {_asked(item) for item in request.session.items if item.path == Path(__file__)}
    for world_size, cases in CASES.items():
        asked = [case for case in cases if (world_size, case) in chosen]
        if not asked:
            continue
        (task / f"world_{world_size}.json").write_text(json.dumps(asked))
        run_ranks(commands, __file__, task, world_size)
        found[world_size] = pickle.loads((task / f"world_{world_size}.pickle").read_bytes())  # noqa: S301
    return found


def _asked(item: Any) -> tuple[int, Case] | None:
    """World size and case that a test is about."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return (parameters["world_size"], parameters["case"]) if parameters else None


def _parameter(world_size: int, case: Case) -> Any:
    marks = () if case in ALWAYS[world_size] else pytest.mark.long
    return pytest.param(world_size, case, marks=marks, id="-".join(map(str, (world_size, *case))))


ALL = [_parameter(world_size, case) for world_size, cases in CASES.items() for case in cases]
ALONE = [_parameter(1, case) for case in CASES[1]]
OFFLOADED = [_parameter(2, case) for case in CASES[2] if case[2] != "none"]


@pytest.mark.parametrize(("world_size", "case"), ALL)
def test_trains_as_the_torch_engine(
    task: Path, worlds: dict, expected: dict[str, Any], world_size: int, case: Case
) -> None:
    (stage, _, offload, together), found = case, worlds[world_size][case]
    for which, apart in (("log_probs", 2e-6), ("mixed_log_probs", 1e-5)):
        for id, log_probs in found[which].items():
            assert np.allclose(log_probs, expected[which][id], atol=apart), (which, id)
    assert len(expected["losses"]) == len(list(task.glob("loss_*.json"))) >= 12
    assert len({metrics["policy/loss"] for metrics in expected["losses"].values()}) >= 9  # three differ in bounds alone
    assert found["losses"].keys() == (expected["losses"].keys() if (stage, offload, together) in LOSSES_AT else set())
    for loss, ours in found["losses"].items():
        assert ours == pytest.approx(expected["losses"][loss], rel=5e-5, abs=3e-6), loss
    assert expected["metrics"][0]["learner/grad_norm"] > 0.5
    assert expected["metrics"][2]["attention/divergence_positive"] > 1e-5
    assert any(np.abs(expected["averaged_rows"][id] - rows).max() > 1e-4 for id, rows in expected["old_rows"].items())
    for ours, theirs in zip(found["metrics"], expected["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=3e-6)  # the gate's maximum is rounding itself
    assert 0 < found["metrics"][1]["attention/gradient_factor"] < 1
    for id, rows in found["averaged_rows"].items():
        assert np.allclose(rows, expected["averaged_rows"][id], atol=1e-5), id
    assert found["weights"].keys() == {"middle", "last", "reloaded", "again", *found["losses"]}
    for point, ours in found["weights"].items():
        theirs = expected["weights"][point]
        assert ours.keys() == theirs.keys()
        distances = {name: np.linalg.norm(ours[name] - array) for name, array in theirs.items()}
        norms = {name: np.linalg.norm(array) for name, array in theirs.items()}
        assert np.linalg.norm(list(distances.values())) <= 1e-5 * np.linalg.norm(list(norms.values()))
        for name, distance in distances.items():
            # Softmax does not see a key bias: its true gradient is 0, and Adam makes whole steps of the rounding.
            bound = 1e-2 if name.endswith(("qkv.bias", "k_proj.bias")) else 1e-3
            assert distance <= bound * norms[name], (point, name)


@pytest.mark.parametrize(("world_size", "case"), ALL)
def test_continues_from_what_it_saved(worlds: dict, world_size: int, case: Case) -> None:
    found = worlds[world_size][case]
    assert found["metrics"][3] == found["metrics"][2]
    for before, after in (("middle", "reloaded"), ("last", "again")):
        for name, array in found["weights"][before].items():
            assert np.array_equal(found["weights"][after][name], array), name
    moved = [
        n for n, array in found["weights"]["middle"].items() if not np.array_equal(found["weights"]["last"][n], array)
    ]
    assert len(moved) == len(found["weights"]["middle"])  # so that loading had something to undo


@pytest.mark.parametrize(("world_size", "case"), ALL)
def test_saves_a_model_that_transformers_loads(task: Path, worlds: dict, world_size: int, case: Case) -> None:
    from ral_system.models.loading import load_model

    found = worlds[world_size][case]
    model = load_model(task / "model_deepspeed_{}_{}_{}_{}_{}".format(world_size, *case), dtype="float32")
    state = model.state_dict()
    assert state.keys() == found["weights"]["again"].keys()
    assert all(np.array_equal(state[name].numpy(), array) for name, array in found["weights"]["again"].items())


@pytest.mark.parametrize(("world_size", "case"), OFFLOADED)
def test_a_run_continues_with_and_without_offload(worlds: dict, world_size: int, case: Case) -> None:
    found = worlds[world_size][case]
    assert found["on_host"] == (True, case[2] == ALL_OF_IT)
    assert len(found["moved"]) == 2
    for metrics, weights in found["moved"]:
        assert metrics == pytest.approx(found["metrics"][2], rel=1e-6)
        for name, array in found["weights"]["last"].items():
            assert np.allclose(weights[name], array, rtol=0, atol=1e-7), name


@pytest.mark.parametrize(("world_size", "case"), ALONE)
def test_a_checkpoint_is_read_without_unpickling_objects(task: Path, worlds: dict, world_size: int, case: Case) -> None:
    found = worlds[world_size][case]
    assert found["files"]
    assert found["refusals"] == [(name, True) for name in found["files"]]
    assert not (task / "trace").exists()


if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
