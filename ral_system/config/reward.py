"""The `reward` group: signals of a response and their weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field

from ral_system.config.base import (
    Group,
    NameIn,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Resumable,
)
from ral_system.config.inert import without_effect
from ral_system.registry import REWARD_SIGNALS, VERIFIERS

VisualRewardForm = Literal["share", "ratio", "laser_pays_length"]
VisualRewardModel = Literal["policy", "reference"]
Verifier = Annotated[str, NameIn(VERIFIERS)]


class VisualRewardConfig(Group):
    """Visual-anchored reward (AVAR 2.4): right answers get more reward the more they look at the pictures."""

    weight: NonNegativeFloat
    """Weight of the signal (the paper: 0.3). With 0 it is not measured."""
    form: VisualRewardForm
    """share: attention on pictures as a share of that on pictures and the system turn, in [0, 1]. ratio: attention on
    pictures divided by that on the system turn, as in the paper; it is unbounded and can outweigh correctness.
    laser_pays_length: R_vis of LASER (arXiv 2607.01707), a control that is known to be bad: a sum over the response,
    which rewards length."""
    model: VisualRewardModel
    """Model whose attention is measured: the policy with the weights that generated the response, or the frozen
    reference on the same response."""

    def given_by(self, model: VisualRewardModel) -> bool:
        """Return whether the signal is on and measured on this model's attention."""
        return self.weight > 0 and self.model == model

    def problems(self) -> Iterator[str]:
        """Refuse settings of a signal that is off."""
        if self.weight == 0:
            path = "reward.visual"
            reason, remedy = f"{path}.weight=0", "raise the weight"
            yield from without_effect(self, path, reason, remedy, "form", "model")

    def warnings(self) -> Iterator[str]:
        """Warn about what a reward for attention does not do, and about the control that is known to be bad."""
        if self.weight == 0:
            return
        if self.form != "laser_pays_length":
            yield (
                f"reward.visual.weight={self.weight:g}: the policy gradient of this reward changes which tokens are "
                "sampled, and does not say where a row should look; others report that responses turned to padding or "
                "pruning in three of three long runs with attention rewards (second-hand, with an audit of LASER, "
                "arXiv 2607.01707); watch rollout/length_mean and the alarms length_drift, length_corr and "
                "aux_runaway, and lower the weight if one of them rings"
            )
        else:
            yield (
                "reward.visual.form=laser_pays_length is a known-bad control: it grows with the length of a response, "
                "whatever that looks at; use it to see the alarms length_corr, aux_only and amplification ring"
            )


class ToleranceConfig(Group):
    """Tolerance of verifier=numeric: a number may differ by absolute + relative · |reference|."""

    absolute: NonNegativeFloat
    """Allowed absolute difference."""
    relative: NonNegativeFloat
    """Allowed difference as a share of the reference."""


class JudgeConfig(Group):
    """Judgement of answers."""

    verifier: Verifier
    """Verifier that compares an answer with the reference."""
    kinds: dict[str, Verifier]
    """Verifiers for particular question kinds, instead of `verifier`. Case does not matter."""
    function: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] | None
    """Python function for verifier=function, as `module:name`. It maps (given answer, reference) to [0, 1] and must be
    importable where rewards run."""
    tolerance: ToleranceConfig
    """Tolerance of verifier=numeric."""
    workers: Annotated[Positive, Resumable]
    """Number of verifier processes."""
    timeout_s: Annotated[PositiveFloat, Resumable]
    """Time limit, in seconds, for judging a response."""
    memory_gib: Annotated[PositiveFloat, Resumable]
    """Largest address space of a verifier process, in GiB. An answer that needs more gets no verdict."""

    def of_kind(self, kind: str) -> Self:
        """Return these settings with the verifier of a question kind; case does not matter."""
        by_kind = {name.strip().lower(): verifier for name, verifier in self.kinds.items()}
        return self.model_copy(update={"verifier": by_kind.get(kind.strip().lower(), self.verifier)})

    @property
    def signal_names(self) -> tuple[str, ...]:
        """Names of the signals of installed packages in use."""
        return ()

    @property
    def foreign(self) -> bool:
        """Whether verifiers or signals come from outside this package."""
        ours = all(map(VERIFIERS.is_built_in, {self.verifier, *self.kinds.values()}))
        return self.function is not None or not (ours and all(map(REWARD_SIGNALS.is_built_in, self.signal_names)))

    def problems(self) -> Iterator[str]:
        """Refuse a missing or unused function, kinds that are given twice, and an unused tolerance."""
        if ("function" in (self.verifier, *self.kinds.values())) != (self.function is not None):
            yield (
                f"reward.verifier={self.verifier} with reward.function={self.function or 'null'}: set both, "
                "reward=function reward.function=module:name, or neither"
            )
        names = [name.strip().lower() for name in self.kinds]
        if twice := sorted({name for name in self.kinds if names.count(name.strip().lower()) > 1}):
            yield f"reward.kinds={twice}: kinds that differ in case alone are one; keep one of them"
        verifiers = {self.verifier, *self.kinds.values()}
        if "numeric" not in verifiers and all(map(VERIFIERS.is_built_in, verifiers)):
            reason = f"reward.verifier={self.verifier}{' and these reward.kinds' if self.kinds else ''}"
            remedy = "choose reward=numeric"
            yield from without_effect(self.tolerance, "reward.tolerance", reason, remedy, *ToleranceConfig.model_fields)


class SignalsConfig(JudgeConfig):
    """Judgement of answers, and the weights of the signals, each in [0, 1]."""

    correctness: NonNegativeFloat
    """Weight of correctness: the verdict of the verifier."""
    format: NonNegativeFloat
    """Weight of the format: 1 for a response in `algorithm.response_format`, otherwise 0."""
    signals: dict[Annotated[str, NameIn(REWARD_SIGNALS)], PositiveFloat]
    """Weights of reward signals that installed packages add, by name."""

    @property
    def signal_names(self) -> tuple[str, ...]:
        """Names of the signals of installed packages in use."""
        return tuple(self.signals)

    def problems(self) -> Iterator[str]:
        """Refuse signals under names that are taken."""
        yield from super().problems()
        for name in sorted({"correctness", "format", "visual", "overlong", "kl"} & self.signals.keys()):
            yield f"reward.signals.{name}: a signal of this name is there already; the package must choose another"


class RewardConfig(SignalsConfig):
    """Reward: the weighted sum of the judged signals and of the visual signal, which measures where a response
    looks."""

    visual: VisualRewardConfig
    """Signal that measures where a response looks."""

    def problems(self) -> Iterator[str]:
        """Refuse rewards that are always 0."""
        yield from super().problems()
        if self.correctness + self.format + self.visual.weight <= 0 and not self.signals:
            yield "reward.correctness and reward.format are both 0, so nothing is learned; raise one"
