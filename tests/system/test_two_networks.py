"""A learner and a real engine on two hosts, as the kernel sees it: two network namespaces, joined by a cable."""

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.publish import Side, engine, learner
from ral_system.errors import WeightTransferError
from ral_system.rollout.vllm_environment import vllm_environment
from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.visual_search import words
from ral_system.types import WeightManifest
from ral_system.weights.transfer.transfer import Setting
from tests.composed import compose_config

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]

CLONE_NEWNET = 0x40000000
HOSTS = {"ral-learner": "10.77.0.1", "ral-engine": "10.77.0.2"}
CABLE = "ral-cable"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def on_host(pipe: Any, name: str, target: Callable[..., None], *arguments: Any) -> None:
    """Run `target` on that host: its loopback is its own, and it reaches the other by the cable alone."""
    with Path("/run/netns", name).open() as namespace:
        assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0
    os.environ |= {"GLOO_SOCKET_IFNAME": CABLE}
    target(pipe, *arguments)


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
        self.learner = Side(on_host, first, learner, model, setting)
        self.engine = Side(on_host, second, engine, model, replace(setting, rank=0), environment)
        self.engine.call("choose", "broadcast")
        self.engine.answer()

    def publish(self, version: int, meanwhile: Callable[[], None] = lambda: None) -> WeightManifest:
        """Change all weights, and load them in the engine; the manifests of both must be equal."""
        self.learner.ask("changed")
        manifest = self.learner.ask("publish", version)
        return self.send(manifest, meanwhile)

    def send(self, manifest: WeightManifest, meanwhile: Callable[[], None] = lambda: None) -> WeightManifest:
        offer = self.learner.ask("offer", "broadcast", manifest, tuple(manifest.tensors))
        self.learner.call("send", "broadcast", offer)
        self.engine.call("load", offer)
        meanwhile()
        answers = [self.engine.answer()[0], self.learner.answer()[0]]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        assert answers[0] == manifest
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
