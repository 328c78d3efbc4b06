"""The `alarms` group: limits on figures of a training run, and what an alarm does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ral_system.config.base import Fraction, Group, NonNegativeFloat, Positive, PositiveFloat
from ral_system.config.inert import without_effect

Limit = PositiveFloat | None
NEVER_STOP = ("part_share", "attention_share_low", "attention_share_of_target")
"""Alarms that `action=stop` does not heed."""


class AlarmsConfig(Group):
    """Limits that detect a gamed reward or a collapsing policy. null turns an alarm off."""

    consecutive: Positive
    """Number of consecutive steps beyond its limit after which an alarm rings. For `attention_gradient_share` and
    `attention_share_low` they are measurements, one every `algorithm.attention.gradient_share_every` steps, and 3 are
    enough. An alarm rings once, and again only after a step within the limit."""
    action: Literal["log", "stop"]
    """log reports an alarm. stop also saves a checkpoint and ends the rl stage with exit code 1 when an alarm other
    than `part_share`, `attention_share_low` or `attention_share_of_target` rings; with `algorithm.max_staleness` > 0 it
    does so at the next checkpoint or evaluation."""
    part_share: Limit
    """Upper limit on the share of the variance of rewards within groups that comes from parts other than correctness.
    It never stops a run."""
    aux_only: Limit
    """Upper limit on the share of groups whose rewards differ although their correctness does not."""
    amplification: Limit
    """Upper limit on the standard deviation of advantages divided by that of rewards in the groups of `aux_only` (their
    95 % quantile)."""
    length_corr: Limit
    """Upper limit on the absolute correlation, within groups, of response length with any auxiliary part that has a
    positive weight."""
    length_drift: Limit
    """Upper limit on the growth of the mean response length over the shortest mean so far: 0.2 is 20 %."""
    duplicates: Limit
    """Upper limit on the share of sentences with more than 25 characters that repeat an earlier one of their
    response."""
    truncation: Limit
    """Upper limit on the share of responses cut at their length limit."""
    truncation_growth: Limit
    """Upper limit on the share of responses cut at their length limit, as a multiple of that of the first step."""
    entropy: Fraction | None
    """Lower limit on token entropy, as a share of that of the first step."""
    aux_runaway: Limit
    """Upper limit on the growth since the first step of the reward from auxiliary parts, while accuracy is flat: 0.6 is
    60 %."""
    flat_accuracy: NonNegativeFloat
    """Smallest gain that counts as progress. For `aux_runaway` accuracy is flat while mean correctness is less than
    this above that of the first step; for `blind_gap`, while `eval/blind_gap` is less than this above its value before
    RL."""
    attention_entropy: Fraction | None
    """Lower limit on the mean entropy of the attention rows, as a share of that of the first step."""
    attention_gradient_share: Limit
    """Upper limit on the attention term's share of the gradient, if it is measured without `max_gradient_share` or
    `target_gradient_share`."""
    attention_share_low: Limit
    """Lower limit on the same share. It never stops a run."""
    attention_share_of_target: Fraction | None
    """Lower limit on the attention term's share of the gradient divided by `target_gradient_share`, mean over the
    updates of a step. RAL's share is 0 in the first update of a batch, so its value is at most 0.5 with two updates. It
    never stops a run."""
    contrast: Limit
    """Lower limit on `attention/contrast`, the difference between where right and wrong responses look, with the
    objectives credit and group_anchor."""

    advantage_factor: Limit
    """Upper limit on the largest factor by which VPPO or VGPO multiplies the advantage of a response."""
    perception_clamped: Limit
    """Upper limit on the share of tokens whose k3 to the blinded view is at its bound, with PAPO or VPPO."""
    unclosed: Limit
    """Upper limit on the rise, since the first step, of the share of uncut responses that do not contain exactly one
    closed answer: 0.2 is 20 percentage points."""
    blind_gap: Limit
    """Upper limit on the growth since the first step of the reward from auxiliary parts, while the accuracy that
    pictures add (`eval/blind_gap`) is flat. Needs `evaluation.blind`."""

    def problems(self) -> Iterator[str]:
        """Refuse settings that have no effect."""
        heeded = self.model_dump(exclude={"consecutive", "action", "flat_accuracy", *NEVER_STOP})
        if self.action == "stop" and all(limit is None for limit in heeded.values()):
            yield (
                f"alarms.action=stop has no effect with no limit but {', '.join(NEVER_STOP)}; set another limit, or "
                "action=log"
            )
        if self.aux_runaway is None and self.blind_gap is None:
            reason, remedy = "aux_runaway=null and blind_gap=null", "set a limit"
            yield from without_effect(self, "alarms", reason, remedy, "flat_accuracy")
