"""Learner and engine, and two ranks of a learner, on two hosts as the kernel sees it: two network namespaces, joined by
a cable. This file is also what the ranks run.
"""

import ctypes
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.publish import Side, engine, learner
from ral_system.actors.cluster import LOOPBACK
from ral_system.actors.learner import rendezvous
from ral_system.errors import WeightTransferError
from ral_system.rollout.vllm_environment import vllm_environment
from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.visual_search import words
from ral_system.training.plan import plan_updates
from ral_system.types import Sample, WeightManifest
from ral_system.weights.transfer.transfer import Setting
from tests.composed import compose_config
from tests.system.ranks import become_rank, run_ranks

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]

CLONE_NEWNET = 0x40000000
RUN = os.environ.setdefault("RAL_TEST_RUN", str(os.getpid()))
"""Tells this run's hosts from another's on the same machine; the ranks inherit it."""
HOSTS = {f"ral-learner-{RUN}": "10.77.0.1", f"ral-engine-{RUN}": "10.77.0.2"}
CABLE = "ral-cable"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def move_to(name: str) -> None:
    """Move this process to a host: its loopback is its own, and it reaches the other by the cable alone."""
    with Path("/run/netns", name).open() as namespace:
        assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0


def on_host(pipe: Any, name: str, target: Callable[..., None], *arguments: Any) -> None:
    """Run `target` on that host."""
    move_to(name)
    target(pipe, *arguments)


def actor_of_a_learner(pipe: Any, model: Path, setting: Setting) -> None:
    """Run the learner in the environment of its actor, whose only rank meets nobody and has a loopback master."""
    os.environ |= rendezvous(setting.rank, 1, (LOOPBACK, 29500), setting.host)
    learner(pipe, model, setting)


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    try:
        for name in HOSTS:
            ip("netns", "add", name)
        first, second = HOSTS
        ip("-n", first, "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", second)
        for name, address in HOSTS.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", CABLE)
            ip("-n", name, "link", "set", CABLE, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


class Pair:
    """The two processes."""

    def __init__(self, folder: Path, timeout_s: float) -> None:
        first, second = HOSTS
        setting = Setting(folder / "weights", 1, 0, 1, 1, HOSTS[first], timeout_s)
        rollout = compose_config("experiment=smoke").rollout
        environment = vllm_environment(rollout, 1, "cpu") | {"VLLM_HOST_IP": HOSTS[second]}
        model = folder / "model"
        self.learner = Side(on_host, first, actor_of_a_learner, model, setting)
        self.engine = Side(on_host, second, engine, model, replace(setting, rank=0), environment)
        self.engine.ask("choose", "broadcast")
        self.learner.ask("choose", "broadcast")

    def publish(self, version: int, meanwhile: Callable[[], None] = lambda: None) -> WeightManifest:
        """Change all weights, and load them in the engine; both must have read the same."""
        self.learner.ask("changed")
        manifest = self.learner.ask("publish", version)
        return self.send(manifest, meanwhile)

    def send(self, manifest: WeightManifest, meanwhile: Callable[[], None] = lambda: None) -> WeightManifest:
        _, offer = self.learner.ask("offer", manifest, tuple(manifest.tensors))
        self.learner.call("send", offer)
        self.engine.call("load", offer)
        meanwhile()
        answers = [self.engine.answer()[0], self.learner.answer()[0]]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        held, read = answers
        assert held.tensors == read and held.version == manifest.version
        return manifest


@pytest.fixture(scope="module")
def pair(hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[float], Pair]]:
    folder = tmp_path_factory.mktemp("networks")
    build_tiny_model(folder / "model", words(), hidden=64, layers=2, vision_layers=1, seed=1)
    pairs: list[Pair] = []

    def make(timeout_s: float) -> Pair:
        pairs.append(Pair(folder, timeout_s))
        return pairs[-1]

    yield make
    for found in pairs:
        for side in (found.learner, found.engine):
            side.process.kill()


def unplugged(seconds: float) -> None:
    first, _ = HOSTS
    ip("-n", first, "link", "set", CABLE, "down")
    time.sleep(seconds)
    ip("-n", first, "link", "set", CABLE, "up")


def test_weights_cross_a_network_and_outlast_a_pulled_cable(pair: Callable[[float], Pair]) -> None:
    processes = pair(60.0)
    processes.publish(1)
    first, _ = HOSTS
    ip("-n", first, "link", "set", CABLE, "down")
    began = time.monotonic()
    processes.publish(2, lambda: unplugged(5.0))
    assert time.monotonic() - began > 5.0
    processes.publish(3)


@pytest.mark.long
def test_after_too_long_a_break_both_sides_connect_again(pair: Callable[[float], Pair]) -> None:
    processes = pair(3.0)
    processes.publish(1)
    manifests: list[WeightManifest] = []
    first, _ = HOSTS
    ip("-n", first, "link", "set", CABLE, "down")
    processes.learner.ask("changed")
    manifests.append(processes.learner.ask("publish", 2))
    with pytest.raises(WeightTransferError, match=r"weights 2 were not received: .*timeout_s=3"):
        processes.send(manifests[0], lambda: unplugged(6.0))
    assert processes.send(manifests[0]) == manifests[0]


def train(task: Path, rank: int, world_size: int, learner: dict[str, Any]) -> dict[str, float]:
    """Make an update; return its metrics, which are of all ranks."""
    from ral_system.config.commands import TrainConfig
    from ral_system.media.store import MediaStore
    from ral_system.training.learner_rank import LearnerRank

    folders = json.loads((task / "folders.json").read_text())
    config = TrainConfig.model_validate_json((task / "config.json").read_text())
    whole = config.model_dump() | {"learner": config.learner.model_dump() | {"world_size": world_size} | learner}
    samples = pickle.loads((task / "samples.pickle").read_bytes())  # noqa: S301 (this test wrote it)
    plan = plan_updates(samples, updates=1, shards=world_size, max_tokens=400)
    media = MediaStore(Path(folders["media"]))
    trained = LearnerRank(TrainConfig.model_validate(whole), Path(folders["model"]), media, rank, world_size, "rl")
    trained.publish(0)
    scores = trained.score(plan)
    return trained.update(plan.updates[0], scores, scores)


def work(task: Path, rank: int, world_size: int, port: int) -> None:
    """One rank on a host of its own; the ranks meet at the first one's address."""
    move_to(list(HOSTS)[rank])
    become_rank(rank, world_size, port)
    os.environ |= {"MASTER_ADDR": HOSTS[next(iter(HOSTS))], "GLOO_SOCKET_IFNAME": CABLE}
    ours = {"engine": "deepspeed", "zero_stage": 3, "offload": "none", "sequence_parallel": 1}
    ours |= {"collective_timeout_s": 300.0}
    metrics = train(task, rank, world_size, ours)
    (task / f"metrics_{rank}.json").write_text(json.dumps(metrics))


def test_two_ranks_of_a_learner_train_across_a_network(
    hosts: None,
    commands: Any,
    tmp_path: Path,
    tiny_model: Path,
    media: Any,
    rl_samples: list[Sample],
    make_config: Callable[..., Any],
) -> None:
    """ZeRO 3 over the cable, as the torch engine in one process."""
    (tmp_path / "config.json").write_text(make_config("algorithm.attention.anchor=ema").model_dump_json())
    (tmp_path / "folders.json").write_text(json.dumps({"model": str(tiny_model), "media": str(media.folder)}))
    (tmp_path / "samples.pickle").write_bytes(pickle.dumps([replace(s, weight_version=0) for s in rl_samples]))
    run_ranks(commands, __file__, tmp_path, 2, RAL_TEST_RUN=RUN)
    expected = train(tmp_path, 0, 1, {})
    for rank in range(2):
        found = json.loads((tmp_path / f"metrics_{rank}.json").read_text())
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert expected["learner/grad_norm"] > 0.1


if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
