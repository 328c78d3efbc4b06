"""Base class of all configuration groups, and the types of their numbers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ral_system.registry import DIVERGENCES, Registry

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OneOrMore = BeforeValidator(lambda given: given if isinstance(given, list | tuple) else (given,))
"""Accept a single value for a tuple field."""


@dataclass(frozen=True, slots=True)
class NameIn:
    """Mark of a text field that names an entry of a registry: `Annotated[str, NameIn(VERIFIERS)]`."""

    registry: Registry

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, name: str) -> str:
        if problem := self.registry.problem(name):
            raise PydanticCustomError("unknown_name", "{says}", {"says": problem})
        return name


Divergence = Annotated[str, NameIn(DIVERGENCES)]


@dataclass(frozen=True, slots=True)
class MayChange:
    """Mark of a field or group that may change when a folder is continued: `Annotated[Positive, Resumable]`."""

    by: Literal["training", "synthesis"]


Resumable = MayChange("training")
"""A run can continue with another value. This holds for the number of steps, the environment of a run, and settings
that are often changed after a failure. Of these, `max_staleness`, `on_new_weights`, `log_prob_gate` and
`reward.timeout_s` affect which samples count, and how.
"""
ResumableSynthesis = MayChange("synthesis")
"""`ral-synthesize` can continue with another value."""


class Group(BaseModel):
    """Base of every group: immutable and without extra keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def problems(self) -> Iterator[str]:
        """Yield a line per illegal or ineffective value of this group: field=value, the reason, the remedy."""
        yield from ()

    def warnings(self) -> Iterator[str]:
        """Yield a line per legal value of this group that is known to cause trouble."""
        yield from ()

    def groups(self) -> Iterator[Group]:
        """Yield this group and all groups inside it, outer ones first."""
        yield self
        for _, value in self:
            for inner in value.values() if isinstance(value, dict) else (value,):
                if isinstance(inner, Group):
                    yield from inner.groups()
