"""What a role keeps on a device that it shares with other roles."""

from __future__ import annotations

import enum

from ral_system.errors import GateError


class Held(enum.IntEnum):
    """How much of its memory a role keeps on a shared device. The rest is in host memory, or dropped."""

    NOTHING = 0
    WEIGHTS = 1
    """The model: enough to hand over new weights, or to take them."""
    ALL = 2
    """Also what work needs: optimiser state and gradients, or a key-value cache."""

    def require(self, least: Held, asked: str) -> None:
        """Raise GateError if less than that is held. `asked` begins its line: "the learner is to publish weights"."""
        if self < least:
            raise GateError(
                f"{asked} while {self.name.lower()} of its memory is on the device that it shares; the phases of "
                "cluster.placement=colocated are out of order"
            )
