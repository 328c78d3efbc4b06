"""Learners and engines that leave a GPU to each other: what they hold there, over several cycles."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ral_system.config.commands import TrainConfig
from ral_system.media.store import MediaStore
from ral_system.training.learner_rank import LearnerRank
from ral_system.training.plan import plan_updates
from ral_system.types import Held, Sample, Sampling
from tests.composed import compose_config
from tests.gpu.devices import CPU, GPU
from tests.gpu.rows import row
from tests.offered import read_whole

pytest.importorskip("hydra")

CYCLES = 4
SLACK = 2**20
"""Bytes: rotary frequencies, and a rank's metrics."""
RESERVED_SLACK = 64 * 2**20
"""Bytes of blocks that cannot go because something small is in them."""
SMALL_ENGINE = (
    *("experiment=smoke", "cluster.gpus_per_rollout=1", "cluster.gpus_per_learner=1"),
    "rollout.gpu_memory_utilization=0.2",
)
FROZEN = "model.freeze_vision=true"
ADAPTERS = "learner.lora={rank: 4, alpha: 8, targets: [q_proj, k_proj, down_proj], vision: false}"
LEARNERS = [
    pytest.param("cpu", "torch", None, "float32", FROZEN, marks=CPU),
    pytest.param("cuda", "torch", None, "float32", FROZEN, marks=GPU),
    pytest.param("cuda", "deepspeed", 0, "float32", FROZEN, marks=GPU),
    pytest.param("cuda", "deepspeed", 1, "float32", FROZEN, marks=GPU),
    pytest.param("cuda", "deepspeed", 2, "bfloat16", FROZEN, marks=GPU),
    pytest.param("cuda", "deepspeed", 2, "bfloat16", ADAPTERS, marks=GPU),
    pytest.param("cuda", "deepspeed", 3, "bfloat16", FROZEN, marks=GPU),
]
"""Device, engine, ZeRO stage, dtype, and what is trained."""
AMOUNTS = "everything", "weights", "nothing"


@pytest.mark.parametrize(("device", "engine", "stage", "dtype", "trained"), LEARNERS)
def test_a_learner_leaves_the_device_whole_and_comes_back_whole(
    device: str,
    engine: str,
    stage: int | None,
    dtype: str,
    trained: str,
    start_rank: Callable[..., LearnerRank],
    rl_samples: list[Sample],
    request: pytest.FixtureRequest,
) -> None:
    """PyTorch counts no memory of a CPU, where only the weights are compared."""
    if engine == "deepspeed":
        request.getfixturevalue("only_rank")
    if trained == ADAPTERS:
        pytest.importorskip("peft")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    settings = ("stages=[rl]", f"learner={engine}", "learner.world_size=1", f"learner.dtype={dtype}")
    zero = () if stage is None else (f"learner.zero_stage={stage}",)
    gate = "rollout.log_prob_gate={token: 1e9, outliers: 0.5, mean: null, p999: null}"
    attention = ("algorithm.attention.anchor=ema", "algorithm.attention.weight=5")
    config = compose_config(*settings, *zero, trained, gate, *attention)
    rank = start_rank(config)
    assert rank._engine.device.type == device
    plan, held = plan_updates(rl_samples, updates=2, shards=1, max_tokens=400), []
    for _ in range(CYCLES):
        read_whole(rank, 0)
        scores = rank.score(plan)
        for update in plan.updates:
            rank.update(update, scores, scores)
        of_cycle = [torch.cuda.memory_allocated() - before[0]]
        published = read_whole(rank, 0)
        for amount in (Held.WEIGHTS, Held.NOTHING):
            rank.hold(amount)
            of_cycle.append(torch.cuda.memory_allocated() - before[0])
        assert torch.cuda.memory_reserved() - before[1] <= RESERVED_SLACK
        rank.hold(Held.ALL)
        assert published is not None and read_whole(rank, 0) == published
        held.append(of_cycle)
    if device == "cuda":
        kept = "frozen encoder" if trained == FROZEN else "adapters"
        for cycle, amounts in enumerate(held):
            sizes = (f"{what} {size / 2**20:.2f} MiB" for what, size in zip(AMOUNTS, amounts, strict=True))
            row(f"learner {engine}, ZeRO {stage}, {dtype}, {kept}, cycle {cycle}", *sizes)
        assert all(whole > weights > nothing <= SLACK for whole, weights, nothing in held)
        assert held[1] == pytest.approx(held[-1], abs=SLACK)  # the first cycle makes the optimiser's state


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_engine_sleeps_wakes_and_generates_the_same(
    start_rank: Callable[..., LearnerRank],
    make_config: Callable[..., TrainConfig],
    tiny_model: Path,
    media: MediaStore,
    rl_samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vllm")
    from ral_system.config.rollout import VllmRolloutConfig
    from ral_system.rollout.vllm_environment import vllm_environment
    from ral_system.rollout.vllm_generator import VllmEngine

    rollout = compose_config(*SMALL_ENGINE).rollout
    assert isinstance(rollout, VllmRolloutConfig)
    for name, value in vllm_environment(rollout, threads=1, device="cuda").items():
        monkeypatch.setenv(name, value)
    rank = start_rank(make_config())
    manifest = read_whole(rank, 0)
    assert manifest is not None
    read, offer = rank.offer(manifest, tuple(manifest.tensors))
    assert offer is not None and read == manifest.tensors
    engine = VllmEngine(tiny_model, rollout, media, 0, "cuda", sleeps=True)
    assert engine.load_weights(offer) == manifest
    prompts, sampling = [sample.prompt for sample in rl_samples[:3]], Sampling(2, 1.0, 12, 5)
    expected = {c.id: c.token_ids for c in engine.generate(prompts, sampling)}
    awake, asleep = torch.cuda.mem_get_info()[0], []
    for _ in range(CYCLES):
        engine.hold(Held.NOTHING)
        asleep.append(torch.cuda.mem_get_info()[0])
        engine.hold(Held.WEIGHTS)
        assert engine.load_weights(offer) == manifest
        engine.hold(Held.ALL)
        assert {c.id: c.token_ids for c in engine.generate(prompts, sampling)} == expected
    engine.close()
    row(f"free, engine awake {awake / 2**30:.2f} GiB", *(f"asleep {size / 2**30:.2f} GiB" for size in asleep))
    total = torch.cuda.mem_get_info()[1]
    assert min(asleep) - awake > 0.15 * total
    assert max(asleep) - min(asleep) <= RESERVED_SLACK
