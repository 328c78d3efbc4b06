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
    """PPO and GRPO: a clipped ratio; clip-higher (DAPO); dual clip."""

    name: Literal["clip"]
    clip_low: Annotated[float, Field(gt=0, le=1)]
    """Lower bound of the ratio that counts: 1 - clip_low."""
    clip_high: PositiveFloat
    """Upper bound of the ratio that counts: 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1)] | None
    """Where A < 0 the ratio counts up to this; null: without bound."""


class DppoLossConfig(PolicyLossGroup):
    """DPPO: tokens whose distribution has moved far enough are left out, whatever their ratio."""

    name: Literal["dppo"]
    divergence: Literal["binary_tv", "binary_kl", "top_k_tv", "top_k_kl"]
    """Between the rollout's distribution and the policy's: over the sampled token and all others together, or over the
    rollout's most likely tokens, one by one."""
    delta: PositiveFloat
    """Distance beyond which a token is left out (the paper: 0.15 to 0.2 for tv, 0.05 nats for kl)."""
    top_k: Annotated[int, Field(ge=2, le=20)]
    """Tokens that the rollout engine reports per position, for top_k_tv and top_k_kl; vLLM gives up to 20."""
    anchor: Literal["rollout", "old"]
    """What the policy is compared with: the log-probs that the rollout engine reported (the paper), or those recomputed
    at the same weights, with which the paper's runs collapse."""
    max_ratio: PositiveFloat
    """Ratios above it weigh as much as it."""

    @property
    def top_tokens(self) -> int:
        """`top_k` where the divergence reads them."""
        return self.top_k if self.divergence.startswith("top_k") else 0

    def problems(self) -> Iterator[str]:
        """Refuse top tokens that the anchor does not have, and their number where the divergence reads none."""
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
        """Warn of the anchor with which the paper's runs collapse."""
        if self.anchor == "old":
            yield (
                "algorithm.policy_loss.anchor=old compares with log-probs that the learner recomputed; DPPO's authors "
                "see training collapse that way (arXiv 2602.04879); anchor=rollout is their method"
            )


class GspoLossConfig(PolicyLossGroup):
    """GSPO: a clipped ratio per sequence."""

    name: Literal["gspo"]
    clip_low: Annotated[float, Field(gt=0, le=1)]
    clip_high: PositiveFloat


class CispoLossConfig(PolicyLossGroup):
    """CISPO: a clipped ratio that weighs the token's gradient and never stops it."""

    name: Literal["cispo"]
    clip_low: Annotated[float, Field(gt=0, le=1)]
    """1: no lower bound (the paper)."""
    clip_high: PositiveFloat


class SapoLossConfig(PolicyLossGroup):
    """SAPO: a soft gate in place of the clip."""

    name: Literal["sapo"]
    tau_positive: PositiveFloat
    """How fast the gate closes where A > 0."""
    tau_negative: PositiveFloat
    """How fast the gate closes where A < 0."""


class ReinforceLossConfig(PolicyLossGroup):
    """REINFORCE."""

    name: Literal["reinforce"]
    ratio: bool
    """Weigh by pi / pi_old."""


_Own = ClipLossConfig | DppoLossConfig | GspoLossConfig | CispoLossConfig | SapoLossConfig | ReinforceLossConfig

_OWN_NAMES = {get_args(loss.model_fields["name"].annotation)[0] for loss in get_args(_Own)}


def _of_a_package(given: Any, own: ValidatorFunctionWrapHandler) -> Any:
    """Settings of a loss that an installed package adds; `own` reads those of this package's. Errors of both say after
    the field which loss it is.
    """
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
