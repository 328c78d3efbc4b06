"""Rows to demonstrate, questions about pictures, and the three roles that do so (VARD of AVAR, 2603.03825)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from ral_system.tasks.visual_search import Record

Role = Literal["describer", "reasoner", "anchorer"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Roles in their order: the picture in words, reasoning over these words, the reasoning with anchors."""


@dataclass(frozen=True, slots=True)
class Row:
    """One question that needs a demonstration."""

    record: Record

    @property
    def id(self) -> str:
        """Id, for example `train/17`."""
        return f"{self.record.split}/{self.record.index}"


class MalformedError(Exception):
    """The text that came back cannot be used; another attempt may do better. `reason` is one of few."""

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(f"{reason}: {output}" if output else reason)
        self.reason, self.output = reason, output


class UnansweredError(Exception):
    """Nothing came back, which says nothing about the row; the next run tries it again."""


class Generator(Protocol):
    """Generator of one role's texts."""

    deterministic: bool
    """Whether another attempt would give the same text."""

    async def check(self) -> None:
        """Raise RalError if no row could get an answer."""
        ...

    async def generate(self, row: Row, texts: Mapping[Role, str]) -> str:
        """This role's text; `texts` are those of the roles before it. Raises MalformedError, UnansweredError, and
        RalError where going on is of no use.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
