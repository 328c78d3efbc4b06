"""The `synthesis` group: demonstrations from `ral-synthesize`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

from ral_system.config.base import (
    Fraction,
    Group,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    ResumableSynthesis,
)

PLACEHOLDER = re.compile(r"\{(question|description|reasoning)\}")


class SynthesisRoleConfig(Group):
    """Who plays one role of `ral-synthesize`: a model behind an OpenAI-compatible server, or the offline templates."""

    endpoint: Annotated[str | None, ResumableSynthesis]
    """Its address, for example http://127.0.0.1:8000/v1; null: the templates."""
    model: str | None
    """The model's name at the endpoint."""
    api_key_env: Annotated[str | None, ResumableSynthesis]
    """Name of the environment variable that holds the key; null: the server wants none."""
    instruction: str
    """What is asked; {question}, {description} and {reasoning} are filled in where they are known."""
    picture: bool
    """Also send the picture."""
    temperature: NonNegativeFloat
    max_tokens: Positive
    requests_per_minute: Annotated[PositiveFloat | None, ResumableSynthesis]
    """null: as fast as `concurrency` allows."""

    def problems_at(self, path: str) -> Iterator[str]:
        """Refuse half an endpoint, and a placeholder that nothing fills; `path` is for example `synthesis.reasoner`."""
        if self.endpoint is not None and not re.match(r"https?://\S+$", self.endpoint):
            yield f"{path}.endpoint={self.endpoint!r} is not an address; write it like http://127.0.0.1:8000/v1"
        if (self.endpoint is None) != (self.model is None):
            yield (
                f"{path}.endpoint={self.endpoint} and {path}.model={self.model} go together; set both, or both to null"
            )
        if unknown := re.findall(r"\{[a-z_]*\}", PLACEHOLDER.sub("", self.instruction)):
            yield (
                f"{path}.instruction: {unknown[0]} is never filled in; known: {{question}}, {{description}}, "
                "{reasoning}"
            )


class SynthesisConfig(Group):
    """Visual-anchored demonstrations (AVAR 2.5): describe the picture, reason over the words, anchor the reasoning."""

    rows: Annotated[Positive, ResumableSynthesis]
    """Training questions that get a demonstration, from the first on."""
    concurrency: Annotated[Positive, ResumableSynthesis]
    """Rows in work at once."""
    attempts: Annotated[Positive, ResumableSynthesis]
    """Completions per role and row before the row is rejected."""
    retries: Annotated[NonNegative, ResumableSynthesis]
    """Further tries of a request that failed or timed out."""
    timeout_s: Annotated[PositiveFloat, ResumableSynthesis]
    """Deadline of one request."""
    anchor: str
    """Regular expression of an anchor, in whatever case; a demonstration has one more than its reasoning had."""
    max_rejected: Annotated[Fraction, ResumableSynthesis]
    """End when more than this share of the rows is rejected, from the twentieth on."""
    describer: SynthesisRoleConfig
    reasoner: SynthesisRoleConfig
    anchorer: SynthesisRoleConfig

    def problems(self) -> Iterator[str]:
        """Refuse an anchor that is not a pattern, roles that are half set, and a description that nothing reads."""
        try:
            re.compile(self.anchor)
        except re.error as error:
            yield f"synthesis.anchor={self.anchor!r} is not a regular expression ({error}); correct it"
        yield from self.describer.problems_at("synthesis.describer")
        yield from self.reasoner.problems_at("synthesis.reasoner")
        yield from self.anchorer.problems_at("synthesis.anchorer")
        if self.describer.endpoint and not self.reasoner.endpoint:
            yield (
                "synthesis.describer.endpoint has no effect: the template reasoner reads the scene and no description; "
                "set synthesis.reasoner.endpoint as well, or the describer's to null"
            )
