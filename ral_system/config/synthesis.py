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
    """A role of `ral-synthesize` is a model on an OpenAI-compatible server, or an offline template."""

    endpoint: Annotated[str | None, ResumableSynthesis]
    """Address of the server, for example `http://127.0.0.1:8000/v1`. null: an offline template."""
    model: str | None
    """Name of the model on the server."""
    api_key_env: Annotated[str | None, ResumableSynthesis]
    """Name of the environment variable that holds the API key. null: the server needs none."""
    instruction: str
    """Text of a request. `{question}`, `{description}` and `{reasoning}` are filled in if they are known."""
    picture: bool
    """Also send the picture."""
    temperature: NonNegativeFloat
    """Sampling temperature."""
    max_tokens: Positive
    """Largest number of tokens of a reply."""
    requests_per_minute: Annotated[PositiveFloat | None, ResumableSynthesis]
    """Largest number of requests per minute. null: as many as `synthesis.concurrency` allows."""

    def problems_at(self, path: str) -> Iterator[str]:
        """Refuse an endpoint without a model and unknown placeholders; `path` is for example `synthesis.reasoner`."""
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
    """Visual-anchored demonstrations (AVAR 2.5): describe the picture, reason over the description, and anchor the
    reasoning in the picture."""

    rows: Annotated[Positive, ResumableSynthesis]
    """Number of training questions, from the first on, to write demonstrations for."""
    concurrency: Annotated[Positive, ResumableSynthesis]
    """Number of rows processed at once."""
    attempts: Annotated[Positive, ResumableSynthesis]
    """Largest number of completions per role and row; after the last unusable one, the row is rejected."""
    retries: Annotated[NonNegative, ResumableSynthesis]
    """Number of retries of a request that failed or timed out."""
    timeout_s: Annotated[PositiveFloat, ResumableSynthesis]
    """Time limit, in seconds, for a request."""
    anchor: str
    """Regular expression of an anchor; case does not matter. A demonstration must contain more anchors than the
    reasoning from which it was made."""
    max_rejected: Annotated[Fraction, ResumableSynthesis]
    """Largest share of rejected rows. The command ends with an error if it is exceeded after the first twenty rows."""
    describer: SynthesisRoleConfig
    """The role that describes the picture."""
    reasoner: SynthesisRoleConfig
    """The role that reasons over the description."""
    anchorer: SynthesisRoleConfig
    """The role that adds anchors to the reasoning."""

    def problems(self) -> Iterator[str]:
        """Refuse an anchor that is not a pattern, incomplete roles, and a description that nothing reads."""
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
