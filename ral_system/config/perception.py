"""The `algorithm.perception` group: one class for each objective on how much responses depend on what they see."""

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
    """Base of those that compare with a blinded view."""

    masks: ClassVar[Literal["prompt", "response"]]
    """Whether the responses to a prompt share their masks, or each has its own."""
    masked: Annotated[float, Field(gt=0, le=1)]
    """Share of the vision encoder's patches that is black."""


class NoPerceptionConfig(PerceptionGroup):
    """Nothing is made of it."""

    name: Literal["none"]


class PapoConfig(BlindedGroup):
    """PAPO: a bonus on how far the policy's distributions are from those with the blinded view."""

    masks: ClassVar[Literal["prompt", "response"]] = "prompt"
    name: Literal["papo"]
    weight: PositiveFloat
    """gamma, on the mean over response tokens of k3 between the policy and the blinded view."""
    entropy_weight: NonNegativeFloat
    """eta_1, on the mean entropy of response tokens, which it lowers. (eta_2 of the paper has no gradient in its
    authors' code, and is not here.)"""
    entropy: Literal["sampled", "exact"]
    """sampled: -log pi of the sampled tokens (the authors' code), whose gradient is 0 on average at the old policy, and
    later that of KL(old ‖ pi). exact: the entropy of the distributions."""

    @property
    def exact_entropy(self) -> bool:
        """Whether it trains the entropy of the next-token distributions."""
        return self.entropy_weight > 0 and self.entropy == "exact"

    def problems(self) -> Iterator[str]:
        """Refuse a kind of entropy that has no weight."""
        if self.entropy_weight == 0:
            path = "algorithm.perception"
            reason, remedy = f"{path}.entropy_weight=0", "raise the weight"
            yield from without_effect(self, path, reason, remedy, "entropy")


class VppoConfig(BlindedGroup):
    """VPPO: the policy loss on those tokens, and more on those responses, that depend on what the policy sees."""

    masks: ClassVar[Literal["prompt", "response"]] = "response"
    name: Literal["vppo"]
    kept_tokens: Annotated[float, Field(gt=0, le=1)]
    """Share of a response's tokens, those that depend most on pictures, that the policy loss has a gradient on."""
    least_factor: Annotated[float, Field(gt=0, le=1)]
    """beta, what the advantage of the response that depends least on pictures is multiplied by; the mean factor over an
    update is 1."""

    def problems(self) -> Iterator[str]:
        """Refuse settings under which every token and response counts the same."""
        if self.kept_tokens == 1 and self.least_factor == 1:
            yield (
                "algorithm.perception.kept_tokens=1 with algorithm.perception.least_factor=1 changes nothing; lower "
                "one, or choose algorithm/perception=none"
            )


class VgpoConfig(PerceptionGroup):
    """VGPO: more of the advantage to those tokens, and those responses, that are most alike to what the policy sees."""

    name: Literal["vgpo"]
    late_weight: NonNegativeFloat
    """beta: weights of chosen late tokens are raised by 1 + beta · t/T, to keep a response looking."""
    late_share: Annotated[float, Field(gt=0, le=1)]
    """Share of the tokens in a response's second half that are chosen, those most alike to its pictures."""
    response_score: Literal["mean", "sum"]
    """How weights of tokens become the score by which a group's responses are compared; sum (the authors' code) pays
    length."""
    least_token_factor: Fraction
    """Bound below the factor of each token on the advantage."""
    most_token_factor: Annotated[float, Field(ge=1)]
    """Bound above it."""
    least_response_factor: Fraction
    """Bound below the factor of each response on its advantage."""
    most_response_factor: Annotated[float, Field(ge=1)]
    """Bound above it."""

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
