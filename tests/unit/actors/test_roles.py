"""The order in which roles are built, on handles that only remember their calls."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from ral_system.actors import clients, roles
from ral_system.actors.group import Call, Member
from ral_system.actors.placement import plan
from ral_system.actors.roles import RayRoles
from ral_system.config.commands import TrainConfig
from ral_system.types import Held
from ral_system.weights.transfer.opening import configured_transfer
from tests.composed import compose_config

GPUS = [f"cluster.gpus_per_{role}=1" for role in ("learner", "rollout", "scorer")]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[TrainConfig], list[str]]:
    """Build all roles of the rl stage, and return each call and each wait, in order."""
    log: list[str] = []

    class Handle:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, method: str) -> Any:
            def remote(*given: Any, **named: Any) -> str:
                log.append(" ".join([method, self._name, *(g.name for g in given if isinstance(g, Held))]))
                return log[-1]

            return SimpleNamespace(remote=remote)

    def wait_all(calls: list[Call], *given: Any, **named: Any) -> list[Any]:
        log.extend(f"done: {call.ref}" for call in calls)
        return [0] * len(calls)

    def built(config: TrainConfig) -> list[str]:
        bundles = plan(config.cluster, config.rollout, config.learner, "rl", reference=True, teachers=0)
        started = object.__new__(RayRoles)
        started._config, started._cluster, started._teachers = config, config.cluster, []
        started._colocated = config.cluster.placement == "colocated"
        started._transfer = configured_transfer(config.rollout, config.algorithm, config.cluster)
        started._members = [Member(Handle(b.name), b.role, b.rank, tmp_path, "node") for b in bundles]
        started._nodes = {b.name: "node" for b in bundles}
        started._folders = {b.name: {tmp_path: tmp_path} for b in bundles}
        started._build("rl", tmp_path, tmp_path, lambda what, seconds: None)
        return log

    for module in (roles, clients):
        monkeypatch.setattr(module, "wait_all", wait_all)
    return built


def test_engines_sleep_before_anything_else_is_built_on_their_gpus(build: Callable[[TrainConfig], list[str]]) -> None:
    log = build(compose_config("cluster.placement=colocated", "rollout.workers=2", "learner.world_size=2", *GPUS))
    engines = [f"rollout {rank}" for rank in range(2)]
    asleep = [f"done: hold {engine} NOTHING" for engine in engines]
    assert [line for line in log if "rollout" in line] == [
        *(f"build {engine}" for engine in engines),
        *(f"done: build {engine}" for engine in engines),  # one that measures what is free shares with nobody yet
        *(f"hold {engine} NOTHING" for engine in engines),
        *asleep,
    ]
    others = {"build_reference reference 0", *(f"build learner {rank}" for rank in range(2))}
    assert others < {*log[log.index(asleep[-1]) :]} and not others & {*log[: log.index(asleep[-1])]}


def test_perceive_has_learners_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The start of a stage without engines, reference and verifiers."""
    built: list[str] = []

    def wait_all(calls: list[Call], *given: Any, on_answer: Callable = lambda member: None, **named: Any) -> list[Any]:
        for call in calls:
            on_answer(call.member)
        built.extend(call.member.name for call in calls)
        return ["sdpa"] * len(calls)

    class Handle:
        def __getattr__(self, method: str) -> Any:
            return SimpleNamespace(remote=lambda *_, **__: method)

    actor = SimpleNamespace(remote=lambda *_: Handle(), options=lambda **_: actor)
    replaced = {
        "start_or_join": lambda address: None,
        "reserve": lambda bundles, *_, **__: ["node"] * len(bundles),
        "nodes_of": lambda group: group,
        "stage_models": lambda nodes, models, *_: [{each: each for each in folders} for folders in models],
        "PlacementGroupSchedulingStrategy": lambda *_: None,
        "meeting_host": lambda nodes: "node",
        "_remote": lambda kind: actor,
        "wait_all": wait_all,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(roles, name, value)
    phases: list[str] = []
    config = compose_config("experiment=smoke", "cluster.start_timeout_s=9")
    started = RayRoles(config, "perceive", tmp_path, tmp_path, lambda what, seconds: phases.append(what))
    assert [member.name for member in started.members] == ["learner 0", "learner 1"]
    assert built == ["learner 0", "learner 0", "learner 1"]  # rank 0 names a port first
    assert phases == ["cluster", "placement", "learner"]
    assert (started.learner.attention_kernel, started.reference, started.teachers) == ("sdpa", None, [])
    assert (started.shared_devices, started.devices) == (None, 2)


def test_roles_on_devices_of_their_own_are_built_together(build: Callable[[TrainConfig], list[str]]) -> None:
    log = build(compose_config("rollout.workers=2", "learner.world_size=2"))
    assert not any("hold" in line for line in log)
    first_done = next(at for at, line in enumerate(log) if line.startswith("done: build"))
    assert {"build rollout 0", "build_reference reference 0", "build learner 1"} < {*log[:first_done]}
