"""What a role keeps on a device that it shares with other roles."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Literal

from ral_system.errors import BUG, GateError


class Held(enum.IntEnum):
    """How much of its memory a role keeps on a shared device. The rest is in host memory, or dropped."""

    NOTHING = 0
    WEIGHTS = 1
    """The model: enough to hand over new weights, or to take them."""
    ALL = 2
    """Also what work needs: optimiser state and gradients, or a key-value cache."""

    @property
    def words(self) -> str:
        """The amount in the words of an error."""
        return ("nothing", "only its weights", "all of its memory")[self]


Role = Literal["rollout engine", "learner rank", "frozen model"]

_NOTHING, _WEIGHTS, _ALL = Held
CHANGES: dict[Role, Collection[tuple[Held, Held]]] = {
    # vLLM loses the weights in its sleep, and takes new ones before it has a cache.
    "rollout engine": ((_ALL, _NOTHING), (_NOTHING, _WEIGHTS), (_WEIGHTS, _ALL), (_WEIGHTS, _NOTHING)),
    # Optimiser state leaves before weights do, and all comes back at once.
    "learner rank": ((_ALL, _WEIGHTS), (_WEIGHTS, _NOTHING), (_WEIGHTS, _ALL), (_NOTHING, _ALL)),
    "frozen model": ((_ALL, _NOTHING), (_NOTHING, _ALL)),
}
"""The changes that a role can make, each from one amount to another."""


class Holding:
    """How much of its memory one process holds, at first all. Raises GateError for a change that its role cannot make,
    and for work that needs more.
    """

    def __init__(self, role: Role) -> None:
        self._role, self._held = role, Held.ALL

    def require(self, least: Held, work: str) -> None:
        """Refuse to work with less than that. `work` completes "was asked to", for example "publish weights"."""
        if self._held < least:
            raise GateError(f"{self._what()} was asked to {work} while it holds {self._holds()}; {BUG}")

    @contextmanager
    def changing(self, held: Held) -> Iterator[None]:
        """Refuse a change that the role cannot make, before the block makes it."""
        if (self._held, held) not in CHANGES[self._role]:
            possible = " or ".join(after.words for before, after in CHANGES[self._role] if before is self._held)
            raise GateError(
                f"{self._what()} was asked to hold {held.words} while it holds {self._holds()}, where it can only "
                f"change to {possible}; {BUG}"
            )
        yield
        self._held = held

    def _what(self) -> str:
        return f"cluster.placement=colocated: a {self._role}"

    def _holds(self) -> str:
        return f"{self._held.words} on the shared device"
