"""The `algorithm.perception` group: one class per objective on how much responses depend on their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ral_system.config.base import Fraction, Group, NonNegativeFloat, PositiveFloat
from ral_system.config.inert import without_effect


class PerceptionGroup(Group):
    """Base of the perception objectives' settings."""

    @property
    def exact_entropy(self) -> bool:
        """Whether it trains the entropy of the next-token distributions."""
        return False


class BlindedGroup(PerceptionGroup):
    """Base of the objectives that compare with a blinded view."""

    masks: ClassVar[Literal["prompt", "response"]]
    """prompt: all responses to a prompt share their masks. response: each response has its own."""
    masked: Annotated[float, Field(gt=0, le=1)]
    """Share of the vision encoder's patches that are black in the blinded view."""


class NoPerceptionConfig(PerceptionGroup):
    """No perception objective."""

    name: Literal["none"]


class PapoConfig(BlindedGroup):
    """PAPO: a bonus for token distributions that differ from those with the blinded view."""

    masks: ClassVar[Literal["prompt", "response"]] = "prompt"
    name: Literal["papo"]
    weight: PositiveFloat
    """Weight of k3 between the policy and its blinded view, averaged over response tokens (gamma)."""
    entropy_weight: NonNegativeFloat
    """Weight of the mean entropy of response tokens, which this term lowers (eta_1). The paper's eta_2 has no gradient
    in the authors' code and is not implemented."""
    entropy: Literal["sampled", "exact"]
    """sampled: -log pi of the sampled tokens (the authors' code). Its expected gradient is 0 at the old policy, and
    later that of KL(old ‖ pi). exact: the entropy of the distributions."""

    @property
    def exact_entropy(self) -> bool:
        """Whether it trains the entropy of the next-token distributions."""
        return self.entropy_weight > 0 and self.entropy == "exact"

    def problems(self) -> Iterator[str]:
        """Refuse a kind of entropy whose weight is 0."""
        if self.entropy_weight == 0:
            path = "algorithm.perception"
            reason, remedy = f"{path}.entropy_weight=0", "raise the weight"
            yield from without_effect(self, path, reason, remedy, "entropy")


class VppoConfig(BlindedGroup):
    """VPPO: the policy loss is restricted to the tokens that depend most on pictures, and responses that depend more on
    them get a larger advantage."""

    masks: ClassVar[Literal["prompt", "response"]] = "response"
    name: Literal["vppo"]
    kept_tokens: Annotated[float, Field(gt=0, le=1)]
    """Share of the tokens of a response, those that depend most on pictures, to which the policy loss is applied."""
    least_factor: Annotated[float, Field(gt=0, le=1)]
    """Factor on the advantage of the response that depends least on pictures (beta). The mean factor over an update is
    1."""

    def problems(self) -> Iterator[str]:
        """Refuse settings under which every token and response counts the same."""
        if self.kept_tokens == 1 and self.least_factor == 1:
            yield (
                "algorithm.perception.kept_tokens=1 with algorithm.perception.least_factor=1 changes nothing; lower "
                "one, or choose algorithm/perception=none"
            )


class VgpoConfig(PerceptionGroup):
    """VGPO: tokens and responses whose hidden states are more similar to those of the pictures get a larger
    advantage."""

    name: Literal["vgpo"]
    late_weight: NonNegativeFloat
    """Boost of late tokens (beta): their weights are multiplied by 1 + beta · t/T. This keeps a response looking."""
    late_share: Annotated[float, Field(gt=0, le=1)]
    """Share of the tokens in the second half of a response that are boosted, those most similar to its pictures."""
    response_score: Literal["mean", "sum"]
    """How the weights of tokens are combined into the score by which the responses of a group are compared. sum (the
    authors' code) rewards length."""
    least_token_factor: Fraction
    """Smallest factor of a token on its advantage."""
    most_token_factor: Annotated[float, Field(ge=1)]
    """Largest factor of a token on its advantage."""
    least_response_factor: Fraction
    """Smallest factor of a response on its advantage."""
    most_response_factor: Annotated[float, Field(ge=1)]
    """Largest factor of a response on its advantage."""

    def problems(self) -> Iterator[str]:
        """Refuse settings under which every token and response counts the same."""
        path = "algorithm.perception"
        bounds = (self.least_token_factor, self.most_token_factor)
        if (*bounds, self.least_response_factor, self.most_response_factor) == (1, 1, 1, 1):
            yield (
                f"{path}.least_token_factor, most_token_factor, least_response_factor and most_response_factor are all "
                "1, which changes nothing; change one, or choose algorithm/perception=none"
            )
        if self.late_weight == 0:
            yield from without_effect(self, path, f"{path}.late_weight=0", "raise the weight", "late_share")


PerceptionConfig = Annotated[NoPerceptionConfig | PapoConfig | VppoConfig | VgpoConfig, Field(discriminator="name")]
