"""Learners with ZeRO 3 share weights out while they load them; before, they loaded whole models.

Two gloo ranks go through all cases in both ways; this file is also what they run.
"""

import json
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ral_system.errors import SetupError
from tests.system.ranks import become_rank, run_ranks

pytestmark = pytest.mark.system

RANKS = 2
CASES = {
    "tied": (),
    "bfloat16": ("learner.dtype=bfloat16", "learner.gradient_checkpointing=true", "model.freeze_vision=true"),
    "adapters": (
        "learner.lora={rank: 4, alpha: 8, targets: [q_proj, down_proj, qkv], vision: true}",
        "learner.offload=optimizer_and_parameters",
    ),
}
WHOLE, BY_SHARDS = "whole", "by shards"


@contextmanager
def loading_in(way: str) -> Iterator[None]:
    """Let learners load whole models inside the block, which DeepSpeed shares out afterwards, or as they do."""
    from ral_system.training import learner_rank

    with pytest.MonkeyPatch.context() as patch:
        if way == WHOLE:
            patch.setattr(learner_rank, "loading", lambda *given: nullcontext())
        yield


def train(task: Path, rank: int, case: str) -> dict[str, Any]:
    """Return what a learner publishes at its start and after an update, the update's metrics, and its buffers."""
    from ral_system.config.commands import TrainConfig
    from ral_system.media.store import MediaStore
    from ral_system.training.learner_rank import LearnerRank
    from ral_system.training.plan import plan_updates
    from tests.offered import read_whole

    folders = json.loads((task / "folders.json").read_text())
    config = TrainConfig.model_validate_json((task / f"{case}.json").read_text())
    samples = pickle.loads((task / "samples.pickle").read_bytes())  # noqa: S301 (this test wrote it)
    model, media = Path(folders["tied" if case == "tied" else "model"]), MediaStore(Path(folders["media"]))
    trained = LearnerRank(config, model, media, rank, RANKS, "rl")
    plan = plan_updates(samples, updates=1, shards=RANKS, max_tokens=200)
    start = read_whole(trained, 0)
    scores = trained.score(plan)
    metrics = trained.update(plan.updates[0], scores, scores)
    after = read_whole(trained, 1)
    buffers = dict(trained._engine.policy.named_buffers())
    return {
        "weights": [dict(manifest.tensors) for manifest in (start, after) if manifest is not None],
        "metrics": metrics,
        "flops": trained.work().flops,
        "buffers": {name: (str(buffer.dtype), buffer.tolist()) for name, buffer in buffers.items()},
    }


def load(task: Path, way: str, case: str, name: str) -> Any:
    """A model as a learner of this case loads it."""
    import torch

    from ral_system.attention.read import AttentionRead
    from ral_system.config.commands import TrainConfig
    from ral_system.scoring.build import build_policy
    from ral_system.training.build import loading
    from ral_system.training.optim import optim_settings

    config = TrainConfig.model_validate_json((task / f"{case}.json").read_text())
    folder, cpu = Path(json.loads((task / "folders.json").read_text())[name]), torch.device("cpu")
    with loading(config.learner, optim_settings(config, "rl"), cpu, 60.0) if way == BY_SHARDS else nullcontext():
        return build_policy(folder, cpu, AttentionRead(), dtype=config.learner.dtype, temperature=1.0).model


def tensors_of(model: Any) -> dict[str, Any]:
    """A model's whole weights, and its buffers."""
    import torch

    from ral_system.training.deepspeed_internals import whole

    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: (str(tensor.dtype), whole(tensor, torch.device("cpu")).tolist()) for name, tensor in named}


def peak_of_loading(task: Path, way: str) -> int:
    """Bytes that loading the large model takes at its highest, without mapped files, which memory can drop."""
    load(task, way, "tied", "model")  # imports what it needs
    return highest_while(lambda: load(task, way, "tied", "large"))


def highest_while(work: Callable[[], Any]) -> int:
    """Bytes by which this process's own memory grows at the highest while it works."""
    before, ended, seen = own_bytes(), threading.Event(), [0]

    def watch() -> None:
        while not ended.wait(0.001):
            seen.append(own_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    made = work()
    seen.append(own_bytes())  # the thread may have been kept from looking since
    del made
    ended.set()
    thread.join()
    return max(seen) - before


def own_bytes() -> int:
    """Memory of this process that is not a mapped file."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def work(task: Path, rank: int, world_size: int, port: int) -> None:
    """One rank: every case and the large model in both ways."""
    become_rank(rank, world_size, port)
    found: dict[str, dict[str, Any]] = {}
    for way in (BY_SHARDS, WHOLE):
        with loading_in(way):
            found[way] = {case: train(task, rank, case) for case in CASES}
        found[way]["qwen3"] = tensors_of(load(task, way, "bfloat16", "qwen3"))
        found[way]["peak"] = peak_of_loading(task, way)
    (task / f"found_{rank}.pickle").write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def folders(
    tiny_model: Path, tied_model: Path, qwen3_folder: Path, media: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The models, and the media of the samples. The large one is in bfloat16, as most are published."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    from ral_system.tasks.tiny_model import build_tiny_model
    from ral_system.tasks.visual_search import words

    large = tmp_path_factory.mktemp("large")
    build_tiny_model(large, words(), hidden=512, layers=8, vision_layers=2, seed=1)
    Qwen2_5_VLForConditionalGeneration.from_pretrained(large, dtype=torch.bfloat16).save_pretrained(large)
    return {"model": tiny_model, "tied": tied_model, "qwen3": qwen3_folder, "large": large, "media": media.folder}


@pytest.fixture(scope="module")
def by_rank(
    commands: Any,
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    rl_samples: Any,
    make_config: Any,
) -> list[dict[str, Any]]:
    """Run all ranks; the results of each."""
    task = tmp_path_factory.mktemp("loading")
    for case, overrides in CASES.items():
        config = make_config(
            *("learner=deepspeed", "learner.zero_stage=3", f"learner.world_size={RANKS}", "rollout=vllm"),
            *("learner.learning_rate=1e-3", "learner.warmup_updates=0", "cluster=ray", "stages=[rl]"),
            *("algorithm.attention.weight=5", "rollout.log_prob_gate={token: 1e9, outliers: 0.9}"),
            *overrides,
        )
        (task / f"{case}.json").write_text(config.model_dump_json())
    (task / "folders.json").write_text(json.dumps({name: str(folder) for name, folder in folders.items()}))
    (task / "samples.pickle").write_bytes(pickle.dumps(rl_samples))
    given_back = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # what is freed, as it is of larger models
    run_ranks(commands, __file__, task, RANKS, "python", PYTHONPATH=str(Path(__file__).parents[2]), **given_back)
    return [pickle.loads((task / f"found_{rank}.pickle").read_bytes()) for rank in range(RANKS)]  # noqa: S301


@pytest.mark.parametrize("case", CASES)
def test_it_trains_bit_for_bit_as_after_loading_a_whole_model(by_rank: list[dict[str, Any]], case: str) -> None:
    for found in by_rank:
        assert found[BY_SHARDS][case] == found[WHOLE][case]
    start, after = by_rank[0][BY_SHARDS][case]["weights"]
    assert len([name for name in start if start[name] != after[name]]) > 5
    assert by_rank[0][BY_SHARDS][case]["flops"] > 0


def test_another_family_is_loaded_bit_for_bit(by_rank: list[dict[str, Any]]) -> None:
    for found in by_rank:
        assert found[BY_SHARDS]["qwen3"] == found[WHOLE]["qwen3"]
        dtypes = {name: dtype for name, (dtype, _) in found[BY_SHARDS]["qwen3"].items()}
        assert set(dtypes.values()) == {"torch.bfloat16", "torch.float32"}
        assert all((dtype == "torch.float32") == name.endswith("inv_freq") for name, dtype in dtypes.items())


def test_a_rank_never_holds_the_whole_model(by_rank: list[dict[str, Any]], folders: dict[str, Path]) -> None:
    from safetensors.torch import load_file

    sizes = [4 * weight.numel() for weight in load_file(folders["large"] / "model.safetensors").values()]
    assert sum(sizes) > 100e6
    for found in by_rank:
        assert 0.95 * sum(sizes) < found[WHOLE]["peak"] < 1.1 * sum(sizes)  # as ranks load that share no weights
        assert found[BY_SHARDS]["peak"] < 0.75 * sum(sizes) + max(sizes)


def test_a_deepspeed_that_rounds_buffers_is_refused(monkeypatch: pytest.MonkeyPatch, make_config: Any) -> None:
    from ral_system.training import deepspeed_engine

    learner = make_config("learner=deepspeed", "learner.zero_stage=3", "rollout=vllm", "cluster=ray").learner
    monkeypatch.setattr("deepspeed.__version__", "0.19.7+cpu")
    loading = deepspeed_engine.loading_by_shards(SimpleNamespace(), learner, torch.device("cpu"), 1.0)  # type: ignore[arg-type]
    with pytest.raises(SetupError, match=r"needs DeepSpeed 0\.19\.8, and 0\.19\.7"), loading:
        pass


if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
