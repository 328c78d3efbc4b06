"""Roles on shared devices: on fakes that count the memory of one device, and of what works there."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.controller.residency import HELD, Phase, Sharing, residency
from ral_system.errors import GateError
from ral_system.observability.progress import PhaseTimer
from ral_system.protocols import SharedDevices
from ral_system.types import Completion, Held, Holding, Prompt, Sample, Sampling, TrainPlan, WeightManifest
from tests.unit.controller.fakes import FakeFrozenModel, Fakes, start

DEVICE_GIB = 80
NEEDS = {  # GiB of a role by what it holds
    "engines": {Held.NOTHING: 0, Held.WEIGHTS: 16, Held.ALL: 68},
    "learner": {Held.NOTHING: 0, Held.WEIGHTS: 16, Held.ALL: 40},
    "frozen": {Held.NOTHING: 0, Held.WEIGHTS: 16, Held.ALL: 20},
}


class Device:
    """One GPU that runs out of memory, and the processes on it."""

    def __init__(self) -> None:
        self.held = {"engines": Held.NOTHING, "learner": Held.ALL, "frozen": Held.ALL}
        self.holding = {
            "engines": Holding("rollout engine"),
            "learner": Holding("learner rank"),
            "frozen": Holding("frozen model"),
        }
        with self.holding["engines"].changing(Held.NOTHING):
            pass  # as they are when all roles have started
        self.log: list[tuple[str, Held]] = []
        self.weights_lost = True
        self.check()

    def check(self) -> None:
        used = sum(NEEDS[role][held] for role, held in self.held.items())
        assert used <= DEVICE_GIB, f"out of memory: {used} GiB for {self.held}"

    def holder(self, role: str) -> Any:
        device = self

        class FakeHolder:
            def hold(self, held: Held) -> None:
                with device.holding[role].changing(held):
                    device.held[role] = held
                    device.weights_lost |= role == "engines" and held is Held.NOTHING
                    device.log.append((role, held))
                    device.check()

        return FakeHolder()


class SharedFakes(Fakes):
    """Roles on one device, which fail if they work without their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Device()
        self.shared_devices = SharedDevices(*(self.device.holder(role) for role in ("engines", "learner", "frozen")))
        self.reference = SharedReference("reference", self)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Completion]:
        assert self.device.held["engines"] is Held.ALL and not self.device.weights_lost
        return super().generate(prompts, sampling)

    def load_weights(self, weights: Any) -> Sequence[WeightManifest]:
        assert self.device.held["engines"] is Held.WEIGHTS
        self.device.weights_lost = False
        return super().load_weights(weights)

    def score(self, plan: TrainPlan) -> Sequence[str]:
        assert self.device.held["learner"] is Held.ALL
        return super().score(plan)

    def check_log_probs(self, plan: TrainPlan) -> float:
        assert self.device.held["learner"] is Held.ALL
        return super().check_log_probs(plan)

    def publish(self, version: int) -> WeightManifest:
        assert self.device.held["learner"] is Held.WEIGHTS
        return super().publish(version)


class SharedReference(FakeFrozenModel):
    def submit(self, samples: Sequence[Sample]) -> None:
        assert self.roles.device.held["frozen"] is Held.ALL  # type: ignore[attr-defined]
        super().submit(samples)


def test_an_awake_engine_beside_a_resident_learner_is_out_of_memory() -> None:
    device = Device()
    device.holder("engines").hold(Held.WEIGHTS)  # there is room for these
    with pytest.raises(AssertionError, match="out of memory: 128 GiB"):
        device.holder("engines").hold(Held.ALL)
    assert not any(engines is learner is Held.ALL for engines, learner, _ in HELD.values())


def test_steps_are_those_of_roles_on_their_own_devices(config: TrainConfig) -> None:
    own, shared = Fakes(), SharedFakes()
    loops = [start(config, roles) for roles in (own, shared)]
    for _ in range(3):
        (one, two) = (loop.step() for loop in loops)
        assert one.rollouts == two.rollouts
        times = {
            name for step in (one, two) for name in step.metrics if name.startswith("time/") or "tokens_per_s" in name
        }
        assert {k: v for k, v in one.metrics.items() if k not in times} == {
            k: v for k, v in two.metrics.items() if k not in times
        }
        assert "time/move_s" in two.metrics and "time/move_s" not in one.metrics
    assert own.calls == shared.calls
    assert own.reference is not None and shared.reference is not None
    assert own.reference.submitted == shared.reference.submitted  # only later


def test_a_step_moves_memory_in_three_phases(config: TrainConfig) -> None:
    roles = SharedFakes()
    loop = start(config, roles)
    loop.step()
    roles.device.log.clear()
    loop.step()
    assert roles.device.log == [
        ("learner", Held.NOTHING),
        ("engines", Held.ALL),
        ("engines", Held.NOTHING),
        ("learner", Held.ALL),
        ("frozen", Held.ALL),
        ("learner", Held.WEIGHTS),
        ("frozen", Held.NOTHING),
        ("engines", Held.WEIGHTS),
    ]


@pytest.fixture
def roles() -> SharedFakes:
    return SharedFakes()


@pytest.fixture
def sharing(roles: SharedFakes) -> Sharing:
    found = residency(roles, PhaseTimer())  # type: ignore[arg-type]
    assert isinstance(found, Sharing)
    return found


def test_engines_that_slept_get_the_same_weights_again(sharing: Sharing, roles: SharedFakes) -> None:
    assert sharing.publish(3) == 2
    sharing.train()  # a checkpoint
    assert roles.device.weights_lost
    sharing.generate()
    assert not roles.device.weights_lost
    assert [call for call in roles.calls if call[0] == "publish"] == [("publish", 3)] * 2
    sharing.generate()  # still awake
    assert len(roles.calls) == 4
    sharing.publish(4)  # from a generation on, as an evaluation of a cold start
    assert roles.loaded_version == 4


def test_phases_out_of_order_are_refused(sharing: Sharing) -> None:
    with pytest.raises(GateError, match=r"^rollout engines were asked to generate before they were given any weights;"):
        sharing.generate()
    with pytest.raises(
        GateError, match=r"phase GENERATE was asked for in phase TRAIN, which only PUBLISH can follow; this is a bug"
    ):
        sharing.enter(Phase.GENERATE)
    sharing.publish(0)
    sharing.generate()
    with pytest.raises(GateError, match=r"phase PUBLISH was asked for in phase GENERATE, which only TRAIN can follow;"):
        sharing.enter(Phase.PUBLISH)


def test_dynamic_sampling_takes_turns_too(make_config: Callable[..., TrainConfig], roles: SharedFakes) -> None:
    config = make_config(
        "algorithm.prompts_per_step=3", "algorithm.completions_per_prompt=4", "algorithm.sampling_rounds=2"
    )
    loop = start(config, roles)
    roles.alike = {"train/0"}
    assert loop.step().metrics["sampling/rounds"] == 2
