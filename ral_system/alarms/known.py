"""The alarms of a training run: the figure that each watches, what it means, and the remedy."""

from __future__ import annotations

from dataclasses import dataclass

from ral_system.config.alarms import NEVER_STOP


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm. Its limit is the field of its name in the `alarms` group, and `alarm/<name>` is 1 while it rings."""

    name: str
    figure: str
    """The metric that is compared with the limit."""
    what: str
    """What the figure is, in a noun phrase."""
    remedy: str
    below: bool = False
    """Whether it rings below its limit instead of above."""
    counts: str = "step"
    """What `alarms.consecutive` counts."""
    enough: int | None = None
    """Number of figures in a row that ring it where `alarms.consecutive` is larger, for a figure measured seldom."""

    @property
    def stops(self) -> bool:
        """Whether `alarms.action=stop` heeds it."""
        return self.name not in NEVER_STOP

    def rings_after(self, consecutive: int) -> int:
        """Return how many figures in a row ring it."""
        return consecutive if self.enough is None else min(consecutive, self.enough)

    def says(self, value: float, limit: float, steps: int) -> str:
        """One line: name, value, limit and remedy."""
        side = "below" if self.below else "above"
        return (
            f"alarm {self.name}: {self.what} is {value:.3g}, {side} alarms.{self.name}={limit:g} "
            f"for {steps} {self.counts}{'s' * (steps != 1)}; {self.remedy}"
        )


ALARMS = (
    Alarm(
        "part_share",
        "health/aux_share",
        "the share of auxiliary parts in the variance of rewards",
        "look at health/part_share/<part> and lower the weight of the largest; this alarm alone does not show a gamed "
        "reward",
    ),
    Alarm(
        "aux_only",
        "health/aux_only",
        "the share of groups that differ only in auxiliary parts",
        "lower these parts' weights, pay them for right answers only, or train on questions that the model answers "
        "sometimes right and sometimes wrong",
    ),
    Alarm(
        "amplification",
        "health/amplification",
        "the factor by which advantages amplify rewards in groups with equal correctness",
        "set algorithm.advantage=dr_grpo, which does not divide by the group's deviation, or round the part's values",
    ),
    Alarm(
        "length_corr",
        "health/length_corr",
        "the correlation of an auxiliary part with length",
        "look at health/length_corr/<part>; divide that part by length, or remove it",
    ),
    Alarm(
        "length_drift",
        "health/length_drift",
        "the growth of the mean response length over its smallest value",
        "read the newest rollouts; if they only pad, set algorithm.overlong.handling=penalty, "
        "or lower rollout.max_new_tokens",
    ),
    Alarm(
        "duplicates",
        "health/duplicates",
        "the share of sentences that repeat an earlier one",
        "read the newest rollouts; lower learner.learning_rate or raise algorithm.kl.coefficient, and look for a part "
        "that pays for length",
    ),
    Alarm(
        "truncation",
        "rollout/truncated",
        "the share of responses cut at their limit",
        "raise rollout.max_new_tokens if long responses are useful; otherwise set algorithm.overlong.handling="
        "penalty or mask",
    ),
    Alarm(
        "truncation_growth",
        "health/truncation_growth",
        "the share of cut responses relative to the first step's",
        "raise rollout.max_new_tokens if long responses are useful; otherwise set algorithm.overlong.handling="
        "penalty or mask",
    ),
    Alarm(
        "entropy",
        "health/entropy",
        "token entropy relative to the first step's",
        "lower learner.learning_rate, choose algorithm/policy_loss=clip_higher, or raise algorithm.kl.coefficient",
        below=True,
    ),
    Alarm(
        "aux_runaway",
        "health/aux_runaway",
        "the growth of the reward from auxiliary parts at flat accuracy",
        "read the newest rollouts; lower the weight of the part that grows, or pay it for right answers only",
    ),
    Alarm(
        "attention_entropy",
        "health/attention_entropy",
        "attention entropy relative to the first step's",
        "attention is collapsing; lower algorithm.attention.weight or target_gradient_share, or set max_gradient_share",
        below=True,
    ),
    Alarm(
        "attention_gradient_share",
        "health/attention_gradient_share",
        "the attention term's share of the gradient",
        "lower algorithm.attention.weight, or set algorithm.attention.max_gradient_share",
        counts="measurement",
        enough=3,
    ),
    Alarm(
        "attention_share_low",
        "health/attention_gradient_share",
        "the attention term's share of the gradient",
        "the term hardly trains anything; set algorithm.attention.target_gradient_share, such as 0.2, or choose "
        "algorithm=grpo",
        below=True,
        counts="measurement",
        enough=3,
    ),
    Alarm(
        "attention_share_of_target",
        "health/attention_share_of_target",
        "the attention term's share of the gradient relative to algorithm.attention.target_gradient_share",
        "look at attention/gradient_factor_update_<k>: where it is 1, the term's gradient is 0 or within rounding "
        "errors, so try other layers, an objective with a gradient in the first update (algorithm=attention_credit), "
        "or float32 in place of bfloat16; where it is 0, only the token loss has no gradient, so train on questions "
        "that the model answers sometimes right and sometimes wrong",
        below=True,
    ),
    Alarm(
        "contrast",
        "health/contrast",
        "the contrast between where right and wrong responses look",
        "responses look at the same places, so an objective that compares them has nothing to learn; choose "
        "algorithm=grpo, or try other rows, layers or keys",
        below=True,
    ),
    Alarm(
        "advantage_factor",
        "perception/advantage_factor_max",
        "the largest factor on a response's advantage",
        "one response decides most of an update; with vppo raise algorithm.perception.least_factor, with vgpo lower "
        "algorithm.perception.most_response_factor, or lower algorithm.updates_per_step",
    ),
    Alarm(
        "perception_clamped",
        "perception/clamped",
        "the share of tokens at the bound on k3",
        "the policy moves further and further from its blinded view; lower algorithm.perception.weight or "
        "algorithm.perception.masked",
    ),
    Alarm(
        "unclosed",
        "health/unclosed_growth",
        "the growth of the share of responses without exactly one closed answer",
        "such answers are not judged, so accuracy is less reliable; read the newest rollouts, raise "
        "reward.format or lower learner.learning_rate",
    ),
    Alarm(
        "blind_gap",
        "health/blind_runaway",
        "the growth of the reward from auxiliary parts while pictures add no more accuracy",
        "lower the weight of the part that grows, or remove it; compare eval/accuracy with eval/accuracy_black",
        counts="evaluation",
    ),
)
"""All alarms, in the order in which they are reported."""
