"""The `algorithm.policy_loss` group: one class per policy loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, SerializeAsAny, TypeAdapter, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from ral_system.config.base import Group, PositiveFloat
from ral_system.config.inert import without_effect
from ral_system.registry import POLICY_LOSSES


class PolicyLossGroup(Group):
    """Base of the policy losses' settings."""

    name: str
    """Name of the loss."""

    @property
    def top_tokens(self) -> int:
        """Number of most likely tokens that the rollout engine must report per position; 0: only the sampled one."""
        return 0


class ClipLossConfig(PolicyLossGroup):
    """Clipped ratio of PPO and GRPO, with clip-higher (DAPO) and dual clip as options."""

    name: Literal["clip"]
    clip_low: Annotated[float, Field(gt=0, le=1)]
    """Ratios are clipped below 1 - clip_low."""
    clip_high: PositiveFloat
    """Ratios are clipped above 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1)] | None
    """Upper bound on the ratio where A < 0 (dual clip). null: no bound."""


class DppoLossConfig(PolicyLossGroup):
    """DPPO: tokens whose distribution has moved too far are left out, independently of their ratio."""

    name: Literal["dppo"]
    divergence: Literal["binary_tv", "binary_kl", "top_k_tv", "top_k_kl"]
    """Distance between the distributions of rollout and policy, total variation or KL. binary: over the sampled token
    and all others as one. top_k: over the most likely tokens of the rollout, each by itself."""
    delta: PositiveFloat
    """Distance above which a token is left out (the paper: 0.15 to 0.2 for tv, 0.05 nats for kl)."""
    top_k: Annotated[int, Field(ge=2, le=20)]
    """Number of tokens that the rollout engine reports per position, for top_k_tv and top_k_kl. vLLM gives up to 20."""
    anchor: Literal["rollout", "old"]
    """Log-probs that the policy is compared with. rollout: those that the rollout engine reported (the paper). old:
    those that the learner recomputed at the same weights; the paper's runs collapse with these."""
    max_ratio: PositiveFloat
    """Largest weight of a token: larger ratios are cut to it."""

    @property
    def top_tokens(self) -> int:
        """`top_k` if the divergence reads the most likely tokens, otherwise 0."""
        return self.top_k if self.divergence.startswith("top_k") else 0

    def problems(self) -> Iterator[str]:
        """Refuse divergences over top tokens that the anchor does not have, and a `top_k` that the divergence does not
        read."""
        path = "algorithm.policy_loss"
        if not self.top_tokens:
            reason, remedy = f"{path}.divergence={self.divergence}", "set the divergence to top_k_tv or top_k_kl"
            yield from without_effect(self, path, reason, remedy, "top_k")
        if self.anchor == "old" and self.top_tokens:
            yield (
                f"algorithm.policy_loss.anchor=old with divergence={self.divergence}: the top tokens are the "
                "rollout's, and the learner recomputes none; set divergence to binary_tv or binary_kl, or anchor to "
                "rollout"
            )

    def warnings(self) -> Iterator[str]:
        """Warn about the anchor with which the paper's runs collapse."""
        if self.anchor == "old":
            yield (
                "algorithm.policy_loss.anchor=old compares with log-probs that the learner recomputed; DPPO's authors "
                "see training collapse that way (arXiv 2602.04879); anchor=rollout is their method"
            )


class GspoLossConfig(PolicyLossGroup):
    """GSPO: a clipped ratio per sequence."""

    name: Literal["gspo"]
    clip_low: Annotated[float, Field(gt=0, le=1)]
    """Ratios of sequences are clipped below 1 - clip_low."""
    clip_high: PositiveFloat
    """Ratios of sequences are clipped above 1 + clip_high."""


class CispoLossConfig(PolicyLossGroup):
    """CISPO: the gradient of every token is weighted by its clipped ratio, and none is dropped."""

    name: Literal["cispo"]
    clip_low: Annotated[float, Field(gt=0, le=1)]
    """Weights are at least 1 - clip_low; 1 means no lower bound (the paper)."""
    clip_high: PositiveFloat
    """Weights are at most 1 + clip_high."""


class SapoLossConfig(PolicyLossGroup):
    """SAPO: a soft gate instead of clipping."""

    name: Literal["sapo"]
    tau_positive: PositiveFloat
    """Temperature of the gate where A > 0; the gate closes faster with a larger one."""
    tau_negative: PositiveFloat
    """Temperature of the gate where A < 0."""


class ReinforceLossConfig(PolicyLossGroup):
    """REINFORCE, with or without an importance ratio."""

    name: Literal["reinforce"]
    ratio: bool
    """Weight every token by pi / pi_old."""


_Own = ClipLossConfig | DppoLossConfig | GspoLossConfig | CispoLossConfig | SapoLossConfig | ReinforceLossConfig

_OWN_NAMES = {get_args(loss.model_fields["name"].annotation)[0] for loss in get_args(_Own)}


def _of_a_package(given: Any, own: ValidatorFunctionWrapHandler) -> Any:
    """Validate the settings of a loss, by `own` for those of this package. Errors name the loss after the field."""
    if isinstance(given, PolicyLossGroup):
        return given
    name = given.get("name") if isinstance(given, Mapping) else None
    if not isinstance(name, str) or name in _OWN_NAMES:
        return own(given)
    if problem := POLICY_LOSSES.problem(name):
        raise PydanticCustomError("of_field_inside", "{says}", {"says": f"name={name}: {problem}"})
    settings: Any = POLICY_LOSSES.get(name).settings
    return TypeAdapter(dict[str, settings]).validate_python({name: given})[name]


PolicyLossConfig = SerializeAsAny[Annotated[Annotated[_Own, Field(discriminator="name")], WrapValidator(_of_a_package)]]
