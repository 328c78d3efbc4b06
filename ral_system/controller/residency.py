"""Who holds what of devices that roles share: the engines while they generate, the learner while it trains.

    phase       engines            learner            frozen models
    GENERATE    weights, cache     nothing            nothing
    TRAIN       nothing            all                all
    PUBLISH     weights            weights            nothing

    TRAIN ─► PUBLISH ─► GENERATE ─► TRAIN ─► …

An engine that held nothing has no weights until some are published to it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Protocol

from ral_system.errors import BUG, GateError
from ral_system.observability.progress import PhaseTimer
from ral_system.protocols import Generator, Learner, Roles, SharedDevices
from ral_system.types import Held
from ral_system.weights.publish import Publisher


class Residency(Protocol):
    """What the controller calls before each phase of a step."""

    publisher: Publisher

    def publish(self, version: int) -> int:
        """Give the engines the learner's weights as `version`; return how many tensors were verified."""
        ...

    def generate(self) -> None:
        """Engines generate from now on, with the weights that were published last."""
        ...

    def train(self) -> None:
        """The learner and frozen models work from now on."""
        ...


def residency(roles: Roles, timer: PhaseTimer) -> Residency:
    """The residency that the roles' placement needs; what it moves is timed as `move`."""
    own = OwnDevices(roles.learner, roles.generator)
    return own if roles.shared_devices is None else Sharing(own, roles.shared_devices, timer)


class OwnDevices:
    """Every role is always where it works."""

    def __init__(self, learner: Learner, generator: Generator) -> None:
        self.publisher = Publisher(learner, generator)

    def publish(self, version: int) -> int:
        """Publish to engines that may be at any work but a generation."""
        return self.publisher.publish(version)

    def generate(self) -> None:
        """Do nothing."""

    def train(self) -> None:
        """Do nothing."""


class Phase(enum.Enum):
    """What the devices are used for."""

    GENERATE = enum.auto()
    TRAIN = enum.auto()
    PUBLISH = enum.auto()


HELD: Mapping[Phase, tuple[Held, Held, Held]] = {
    Phase.GENERATE: (Held.ALL, Held.NOTHING, Held.NOTHING),
    Phase.TRAIN: (Held.NOTHING, Held.ALL, Held.ALL),
    Phase.PUBLISH: (Held.WEIGHTS, Held.WEIGHTS, Held.NOTHING),
}
"""What engines, learner and frozen models hold in each phase. Of these, only the learner and frozen models ever hold
everything at once."""
NEXT = {Phase.TRAIN: (Phase.PUBLISH,), Phase.PUBLISH: (Phase.GENERATE, Phase.TRAIN), Phase.GENERATE: (Phase.TRAIN,)}
"""The phases that may follow each phase."""


class Sharing:
    """An engine is awake or a learner is resident, never both. The first phase is TRAIN: roles start that way."""

    def __init__(self, own: OwnDevices, devices: SharedDevices, timer: PhaseTimer) -> None:
        self.publisher, self._timer = own.publisher, timer
        self._holders = (devices.engines, devices.learner, devices.frozen)
        self._phase = Phase.TRAIN
        self._version: int | None = None

    def publish(self, version: int) -> int:
        """Publish while engines and learner hold only their weights."""
        self.train()
        self.enter(Phase.PUBLISH)
        self._version = version
        self.publisher.forget()
        return self.publisher.publish(version)

    def generate(self) -> None:
        """Publish the last version again if the engines have given it up since."""
        if self._phase is Phase.TRAIN:
            if self._version is None:
                raise GateError(f"rollout engines were asked to generate before they were given any weights; {BUG}")
            self.publish(self._version)
        self.enter(Phase.GENERATE)

    def train(self) -> None:
        """Put the engines to sleep and bring the learner back."""
        self.enter(Phase.TRAIN)

    def enter(self, phase: Phase) -> None:
        """Let roles that give memory up do so before others take it. Raises GateError for a phase out of order."""
        if phase is self._phase:
            return
        if phase not in NEXT[self._phase]:
            possible = " or ".join(after.name for after in NEXT[self._phase])
            raise GateError(
                f"cluster.placement=colocated: phase {phase.name} was asked for in phase {self._phase.name}, which "
                f"only {possible} can follow; {BUG}"
            )
        changes = [*zip(self._holders, HELD[self._phase], HELD[phase], strict=True)]
        with self._timer.phase("move"):
            for holder, _, after in (c for c in changes if c[2] < c[1]):
                holder.hold(after)
            for holder, _, after in (c for c in changes if c[2] > c[1]):
                holder.hold(after)
        self._phase = phase
