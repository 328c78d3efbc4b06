"""The `alarms` group: which figures of a training run ring, and what follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ral_system.config.base import Fraction, Group, NonNegativeFloat, Positive, PositiveFloat
from ral_system.config.inert import without_effect

Limit = PositiveFloat | None


class AlarmsConfig(Group):
    """Limits that tell a reward that is being gamed, or a policy that collapses, from learning; null: no such alarm."""

    consecutive: Positive
    """Steps in a row beyond its limit after which an alarm rings, or measurements of the gradient's share, one in
    `algorithm.attention.gradient_share_every` steps. It rings once until a step is within the limit."""
    action: Literal["log", "stop"]
    """stop ends the rl stage with a checkpoint and exit code 1 while an alarm rings, `part_share` excepted; with
    `algorithm.max_staleness` at the next checkpoint or evaluation."""
    part_share: Limit
    """Share of the rewards' spread within groups that comes from all parts but correctness. For context."""
    aux_only: Limit
    """Share of groups whose rewards differ although their correctness does not."""
    amplification: Limit
    """Factor by which the advantage stretches the rewards of such groups: its 95 % quantile."""
    length_corr: Limit
    """Correlation with response length, within groups and of either sign, of an auxiliary part that is paid."""
    length_drift: Limit
    """Growth of the mean response length over the shortest mean so far: 0.2 is 20 %."""
    duplicates: Limit
    """Share of sentences above 25 characters that their response has said before."""
    truncation: Limit
    """Share of responses cut at their limit."""
    truncation_growth: Limit
    """Share of responses cut at their limit, as a multiple of the first step's."""
    entropy: Fraction | None
    """Token entropy as a share of the first step's; rings below it."""
    aux_runaway: Limit
    """Growth since the first step of what auxiliary parts pay, while accuracy is flat: 0.6 is 60 %."""
    flat_accuracy: NonNegativeFloat
    """Accuracy is flat while the step's mean correctness is less than this above the first step's; what pictures add to
    held-out accuracy, while it is less than this above what they added before RL."""
    attention_entropy: Fraction | None
    """Mean entropy of the attention rows as a share of the first step's; rings below it."""
    attention_gradient_share: Limit
    """The attention term's share of the gradient, where it is measured and neither capped nor held."""
    contrast: Limit
    """Contrast of where right and wrong responses look, `attention/contrast`, with objectives that compare looks; rings
    below it."""

    advantage_factor: Limit
    """Largest factor of VPPO, or VGPO, on a response's advantage."""
    perception_clamped: Limit
    """Share of tokens whose distributions pictures change beyond a bound, with PAPO or VPPO."""
    unclosed: Limit
    """Share of responses, of those that were not cut, without exactly one closed answer, minus the first step's: 0.2 is
    20 percentage points."""
    blind_gap: Limit
    """Growth since the first step of what auxiliary parts pay, while what pictures add to held-out accuracy is flat;
    with `evaluation.blind`."""

    def problems(self) -> Iterator[str]:
        """Settings that nothing reads."""
        heeded = self.model_dump(exclude={"consecutive", "action", "flat_accuracy", "part_share"})
        if self.action == "stop" and all(limit is None for limit in heeded.values()):
            yield "alarms.action=stop has no effect with no limit but part_share; set another limit, or action=log"
        if self.aux_runaway is None and self.blind_gap is None:
            reason, remedy = "aux_runaway=null and blind_gap=null", "set a limit"
            yield from without_effect(self, "alarms", reason, remedy, "flat_accuracy")
