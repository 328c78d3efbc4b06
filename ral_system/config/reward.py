"""The `reward` group: what a response is worth."""

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
    """Visual-anchored reward (AVAR 2.4): right answers are worth more the more their words look at the picture."""

    weight: NonNegativeFloat
    """The paper: 0.3; 0 measures nothing."""
    form: VisualRewardForm
    """share: of the attention on picture and system turn, the picture's, in [0, 1]. ratio: the one over the other, as
    the paper writes it; it has no bound and can outweigh correctness. laser_pays_length: R_vis of LASER (arXiv
    2607.01707), a control that is known to be bad: a sum over the response, which pays for its length."""
    model: VisualRewardModel
    """Model whose attention is read: the policy at the rollout's weights, or the frozen reference on the same words."""

    def given_by(self, model: VisualRewardModel) -> bool:
        """Return whether the reward is given, and read from this model's attention."""
        return self.weight > 0 and self.model == model

    def problems(self) -> Iterator[str]:
        """Refuse settings of a reward that is not given."""
        if self.weight == 0:
            path = "reward.visual"
            reason, remedy = f"{path}.weight=0", "raise the weight"
            yield from without_effect(self, path, reason, remedy, "form", "model")

    def warnings(self) -> Iterator[str]:
        """Warn of the control."""
        if self.weight > 0 and self.form == "laser_pays_length":
            yield (
                "reward.visual.form=laser_pays_length is a known-bad control: it grows with the length of a response, "
                "whatever that looks at; use it to see the alarms length_corr, aux_only and amplification ring"
            )


class ToleranceConfig(Group):
    """How far a number may be off, for verifier=numeric: absolute + relative · |reference|."""

    absolute: NonNegativeFloat
    relative: NonNegativeFloat


class JudgeConfig(Group):
    """What judges an answer."""

    verifier: Verifier
    """Verifier of the answer."""
    kinds: dict[str, Verifier]
    """Verifiers of single question kinds, instead of `verifier`; case does not matter."""
    function: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] | None
    """For the verifier `function`: `module:name` of one (given, reference) → [0, 1], importable where rewards run."""
    tolerance: ToleranceConfig
    workers: Annotated[Positive, Resumable]
    """Verifier subprocesses per reward actor."""
    timeout_s: Annotated[PositiveFloat, Resumable]
    """Deadline per completion."""
    memory_gib: Annotated[PositiveFloat, Resumable]
    """Address space of a verifier process; an answer that makes it ask for more is not judged."""

    def of_kind(self, kind: str) -> Self:
        """These settings with the verifier of a question kind, whatever its case."""
        by_kind = {name.strip().lower(): verifier for name, verifier in self.kinds.items()}
        return self.model_copy(update={"verifier": by_kind.get(kind.strip().lower(), self.verifier)})

    @property
    def signal_names(self) -> tuple[str, ...]:
        """Names of the signals, of installed packages, that are asked for."""
        return ()

    @property
    def foreign(self) -> bool:
        """Whether code from outside this package judges."""
        ours = all(map(VERIFIERS.is_built_in, {self.verifier, *self.kinds.values()}))
        return self.function is not None or not (ours and all(map(REWARD_SIGNALS.is_built_in, self.signal_names)))

    def problems(self) -> Iterator[str]:
        """Refuse a function that is not there or not called, kinds that are given twice, and an unread tolerance."""
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
    """What judges a response's text, and what its signals are worth, each in [0, 1]."""

    correctness: NonNegativeFloat
    format: NonNegativeFloat
    signals: dict[Annotated[str, NameIn(REWARD_SIGNALS)], PositiveFloat]
    """Weights of reward signals that installed packages add, by name."""

    @property
    def signal_names(self) -> tuple[str, ...]:
        """Names of the signals, of installed packages, that are asked for."""
        return tuple(self.signals)

    def problems(self) -> Iterator[str]:
        """Refuse signals under names that are taken."""
        yield from super().problems()
        for name in sorted({"correctness", "format", "visual", "overlong", "kl"} & self.signals.keys()):
            yield f"reward.signals.{name}: a signal of this name is there already; the package must choose another"


class RewardConfig(SignalsConfig):
    """Weighted sum of the reward's signals: the judged ones, and where a response looks (visual.form=ratio is not in
    [0, 1])."""

    visual: VisualRewardConfig

    def problems(self) -> Iterator[str]:
        """Refuse rewards that are always 0."""
        yield from super().problems()
        if self.correctness + self.format + self.visual.weight <= 0 and not self.signals:
            yield "reward.correctness and reward.format are both 0, so nothing is learned; raise one"
