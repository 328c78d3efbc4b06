"""The `algorithm` group: the training objective and the shape of one step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from ral_system.config.attention import AttentionConfig
from ral_system.config.base import (
    Divergence,
    Group,
    NonNegative,
    NonNegativeFloat,
    Positive,
    Resumable,
)
from ral_system.config.choices import Deal, Reduction, ResponseFormat, TokenDivergence
from ral_system.config.inert import without_effect
from ral_system.config.perception import NoPerceptionConfig, PapoConfig, PerceptionConfig
from ral_system.config.policy_loss import DppoLossConfig, PolicyLossConfig, ReinforceLossConfig
from ral_system.registry import POLICY_LOSSES

Advantage = Literal["grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "gdpo"]


class KLConfig(Group):
    """Penalty towards the frozen reference policy."""

    coefficient: NonNegativeFloat
    """Weight of the KL penalty (beta). The KL is always averaged over tokens, independently of `reduction`. With 0 no
    reference model is started unless something else needs it."""
    estimator: Literal["k1", "k2", "k3"]
    """Estimator of KL(pi ‖ reference) from the sampled tokens (Schulman). k1 has zero expected gradient, k2 has the
    gradient of the KL, and k3 is never negative and the usual choice."""
    place: Literal["loss", "reward"]
    """loss adds the penalty to the loss. reward subtracts each response's sum, computed with the weights that generated
    it, from its reward."""

    def problems(self) -> Iterator[str]:
        """Refuse settings of a penalty that is off."""
        if self.coefficient == 0:
            path = "algorithm.kl"
            yield from without_effect(
                self, path, f"{path}.coefficient=0", "raise the coefficient", "estimator", "place"
            )

    def warnings(self) -> Iterator[str]:
        """Warn about the estimator whose expected gradient is 0."""
        if self.coefficient > 0 and self.estimator == "k1" and self.place == "loss":
            yield (
                "algorithm.kl.estimator=k1 has a gradient of 0 on average and does not hold the policy back; use k2 "
                "or k3"
            )


class TokenDistillationConfig(Group):
    """Distillation of a teacher's next-token distributions on the student's own rollouts (L_GKD, Eq 7)."""

    weight: NonNegativeFloat
    """Weight of the token distillation loss (mu), which is a mean over response tokens. 0 turns it off."""
    divergence: TokenDivergence
    """Divergence between student and teacher: reverse_kl is KL(student ‖ teacher), forward_kl is KL(teacher ‖ student),
    and jsd the generalised Jensen-Shannon divergence."""
    jsd_beta: Annotated[float, Field(gt=0, lt=1)]
    """Weight of the teacher in the mixture, with divergence=jsd."""
    top_k: Positive | None
    """Number of most likely tokens that the teacher sends per position, together with the remaining probability mass;
    the divergence is then a lower bound. null sends the whole vocabulary."""

    def problems(self) -> Iterator[str]:
        """Refuse settings of a distillation that is off, and a mixture that no divergence reads."""
        path = "algorithm.distillation.tokens"
        if self.weight == 0:
            fields = ("divergence", "jsd_beta", "top_k")
            yield from without_effect(self, path, f"{path}.weight=0", "raise the weight", *fields)
        elif self.divergence != "jsd":
            reason, remedy = f"{path}.divergence={self.divergence}", "set the divergence to jsd"
            yield from without_effect(self, path, reason, remedy, "jsd_beta")


class AttentionDistillationConfig(Group):
    """Distillation of a teacher's attention (L_AD, Eq 5-6): the mean over heads of the last layer. All rows have the
    same weight; advantages are not used. `algorithm.attention` sets rows, keys and the form of the record."""

    weight: NonNegativeFloat
    """Weight of the attention distillation loss (gamma_attn). 0 turns it off."""
    divergence: Divergence
    """Divergence between the student's and the teacher's rows (the paper: jsd)."""
    reduction: Reduction
    """How the divergences of rows are averaged, as in `algorithm.attention.reduction` (the paper: sequence_sum)."""

    def problems(self) -> Iterator[str]:
        """Refuse settings of a distillation that is off."""
        if self.weight == 0:
            path = "algorithm.distillation.attention"
            reason, remedy = f"{path}.weight=0", "raise the weight"
            yield from without_effect(self, path, reason, remedy, "divergence", "reduction")


class DistillationConfig(Group):
    """Distillation from a teacher on the student's own rollouts. No teacher is started if both weights are 0."""

    tokens: TokenDistillationConfig
    """Distillation of next-token distributions."""
    attention: AttentionDistillationConfig
    """Distillation of attention."""


class CorrectionConfig(Group):
    """Correction for the mismatch between rollout engine and learner: tokens are weighted by w = pi_old / mu, with the
    learner's probability pi_old and the engine's mu at the same weights."""

    kind: Literal["none", "truncate", "mask", "reject_sequence"]
    """none: weight 1. truncate: min(w, high), truncated importance sampling. mask: w inside [low, high] and 0 outside
    (IcePop). reject_sequence: 0 for all tokens of a sequence whose geometric mean of w is outside [low, high],
    otherwise 1."""
    low: Annotated[float, Field(gt=0, le=1)]
    """Lower bound on w, for mask and reject_sequence."""
    high: Annotated[float, Field(ge=1)]
    """Upper bound on w, for truncate, mask and reject_sequence."""

    def problems(self) -> Iterator[str]:
        """Refuse bounds that the kind does not read."""
        path = "algorithm.correction"
        reason = f"{path}.kind={self.kind}"
        if self.kind in ("none", "truncate"):
            yield from without_effect(self, path, reason, "set the kind to mask or reject_sequence", "low")
        if self.kind == "none":
            yield from without_effect(self, path, reason, "choose another kind", "high")


class OverlongConfig(Group):
    """Responses that reach, or nearly reach, `rollout.max_new_tokens` or the end of `rollout.max_model_len` (DAPO,
    arXiv 2503.14476)."""

    handling: Literal["none", "mask", "penalty"]
    """none: no special treatment. mask: a response that was cut gets advantage 0. penalty: subtract up to 1 from the
    reward as the response approaches the limit."""
    buffer: Positive
    """Number of tokens before the limit over which the penalty grows from 0 to 1."""

    def problems(self) -> Iterator[str]:
        """Refuse the buffer of a penalty that is off."""
        if self.handling != "penalty":
            path = "algorithm.overlong"
            reason, remedy = f"{path}.handling={self.handling}", "set the handling to penalty"
            yield from without_effect(self, path, reason, remedy, "buffer")


class ResponseConfig(Group):
    """Format of responses."""

    response_format: ResponseFormat
    """think_answer: `<think>…</think><answer>…</answer>`. answer_only: the answer without a thought (RAL-zero)."""


class AlgorithmConfig(ResponseConfig):
    """The training objective and the shape of one step."""

    name: str
    """Name of the algorithm in reports and in the default name of the run."""
    steps: Annotated[Positive, Resumable]
    """Number of RL steps: rollout batches to train on."""
    prompts_per_step: Positive
    """Number of prompts in a rollout batch."""
    completions_per_prompt: Annotated[int, Field(ge=2)]
    """Number of responses to each prompt: the group within which rewards are compared (G)."""
    sampling_rounds: Positive
    """Largest number of rollout rounds per step. 1 trains on every group. With more, groups whose rewards are all equal
    are replaced by groups from the next prompts (dynamic sampling), and rewards no longer overlap with scoring."""
    max_staleness: Annotated[NonNegative, Resumable]
    """How many versions older than the trained weights the weights that generated a batch may be. 0 alternates between
    generating and training. N generates up to N batches ahead while one trains: learners keep N + 1 versions of their
    weights in host memory, to score a batch with the version that generated it, and up to N published versions may wait
    for the engines."""
    overlong: OverlongConfig
    """Responses that are too long."""
    updates_per_step: Positive
    """Number of optimiser updates per pass over a rollout batch, each on an equal part of it (K)."""
    deal: Deal
    """How a rollout batch is divided among its updates. groups: an update gets whole groups, and each prompt is
    computed once for all its responses. samples: the members of a group are spread over the updates. With groups, the
    earlier updates of a step were on other prompts only, so a response's attention has changed by what those prompts
    taught and not by the rest of its own group."""
    passes_per_step: Positive
    """Number of passes over each rollout batch (PPO's epochs), each with the same K updates in the same order. Old
    log-probs and attention are always those of the weights that generated the batch, so from the second pass on every
    sample is off policy."""
    policy_weight: NonNegativeFloat
    """Weight of the policy loss. With 0 only the other terms train, for example distillation from a teacher without
    rewards."""
    advantage: Advantage
    """Estimator of the advantage of a response from the rewards of its group."""
    policy_loss: PolicyLossConfig
    """Policy loss, and its settings."""
    reduction: Literal[Reduction, "fixed_length"]
    """How the policy loss is averaged over an update. token_mean: over all its tokens. The others average over
    sequences: sequence_mean the mean of each, sequence_sum the sum of each, fixed_length the sum of each divided by
    `fixed_length` (Dr. GRPO)."""
    fixed_length: Positive
    """Divisor of each sequence's sum, with reduction=fixed_length."""
    correction: CorrectionConfig
    """Correction for the mismatch between rollout engine and learner."""
    entropy_coefficient: NonNegativeFloat
    """Weight of a bonus on the entropy of the next-token distributions, in nats, averaged over all tokens."""
    kl: KLConfig
    """Penalty towards the reference policy."""
    attention: AttentionConfig
    """Attention objective."""
    perception: PerceptionConfig
    """Objective on how much a response's tokens depend on its pictures."""
    distillation: DistillationConfig
    """Distillation from a teacher."""

    @property
    def updates_per_batch(self) -> int:
        """Optimiser updates on one rollout batch, over all its passes."""
        return self.updates_per_step * self.passes_per_step

    def problems(self) -> Iterator[str]:
        """Refuse objectives that train nothing, and parts that contradict each other."""
        yield from self._attention_problems()
        yield from self._distillation_problems()
        yield from self._policy_loss_problems()
        yield from self._unweighted_problems()
        yield from self._reward_problems()
        yield from self._perception_problems()

    def _attention_problems(self) -> Iterator[str]:
        attention = self.attention
        on_policy = self.updates_per_batch == 1 and self.max_staleness == 0
        if attention.objective.reads_glances and self.completions_per_prompt < 3:
            yield (
                f"algorithm.completions_per_prompt={self.completions_per_prompt} with "
                f"algorithm.attention.objective.name={attention.objective.name}: a response is compared with at "
                "least two others of its group; set it to 3 or more"
            )
        proximal = attention.compares_looks and attention.objective.trains_divergence
        if proximal and attention.anchor == "old" and on_policy:
            yield (
                "algorithm.attention.objective.proximal with algorithm.updates_per_step=1, "
                "algorithm.passes_per_step=1 and algorithm.attention.anchor=old holds nothing back: the divergence to "
                "the old policy has zero gradient at the old policy; set algorithm.updates_per_step or passes_per_step "
                "to 2 or more, the anchor to reference or ema, or proximal to 0"
            )
        trains_rows = attention.weight > 0 and attention.objective.name == "ral"
        if trains_rows and attention.anchor == "old" and on_policy:
            yield (
                f"algorithm.attention.weight={attention.weight} with algorithm.updates_per_step=1 and "
                "algorithm.passes_per_step=1 trains nothing: the divergence to the old policy has zero gradient at the "
                "old policy; set algorithm.updates_per_step or passes_per_step to 2 or more, "
                "algorithm.attention.anchor to reference or ema, or algorithm.attention.weight=0"
            )
        is_itself = attention.anchor == "ema" and attention.ema_decay == 0 and self.updates_per_batch == 1
        if is_itself and attention.objective.trains_divergence:
            yield (
                "algorithm.attention.anchor=ema with algorithm.attention.ema_decay=0 and one update per rollout batch "
                "trains nothing: the average is the policy itself; raise ema_decay"
            )

    def _distillation_problems(self) -> Iterator[str]:
        attention, teach = self.attention, self.distillation
        if teach.attention.weight > 0 and attention.heads != "mean":
            yield (
                f"algorithm.attention.heads={attention.heads} cannot be distilled: teacher and student need not have "
                "as many heads as each other; set it to mean"
            )
        if teach.attention.weight > 0 and not isinstance(attention.layers, str) and -1 not in attention.layers:
            yield (
                f"algorithm.attention.layers={list(attention.layers)} does not read the last layer, whose attention "
                "is distilled; add -1, or set it to last"
            )
        if not any((self.policy_weight, attention.weight, teach.tokens.weight, teach.attention.weight)):
            yield "algorithm.policy_weight=0 and every other weight is 0, so nothing is learned; raise one"

    def _policy_loss_problems(self) -> Iterator[str]:
        loss, kind = self.policy_loss, self.correction.kind
        if loss.name == "gspo" and kind in ("truncate", "mask"):
            yield (
                f"algorithm.correction.kind={kind} weighs single tokens, and algorithm.policy_loss.name=gspo has one "
                "ratio for a sequence; set the kind to reject_sequence or none"
            )
        if isinstance(loss, DppoLossConfig) and loss.anchor == "rollout" and kind != "none":
            yield (
                f"algorithm.correction.kind={kind} corrects ratios to the recomputed log-probs, and "
                "algorithm.policy_loss.anchor=rollout has none; set the kind to none"
            )

    def _unweighted_problems(self) -> Iterator[str]:
        if self.policy_weight > 0:
            return
        if isinstance(self.policy_loss, DppoLossConfig) and self.policy_loss.top_tokens:
            yield (
                f"algorithm.policy_loss.divergence={self.policy_loss.divergence} has no effect with "
                "algorithm.policy_weight=0; choose algorithm/policy_loss=clip"
            )
        if POLICY_LOSSES.is_built_in(self.policy_loss.name):  # conf/ has no preset of others
            path, remedy = "algorithm.policy_loss", "raise the weight"
            settings = [field for field in type(self.policy_loss).model_fields if field != "name"]
            yield from without_effect(self.policy_loss, path, "algorithm.policy_weight=0", remedy, *settings)
        share = self.attention.gradient_share
        which = "max_gradient_share" if self.attention.target_gradient_share is None else "target_gradient_share"
        if share is not None and not (self.kl.coefficient > 0 and self.kl.place == "loss"):
            yield (
                f"algorithm.attention.{which}={share:g} has no effect: there is no token gradient with "
                "algorithm.policy_weight=0 and no KL in the loss; set it to null"
            )

    def _perception_problems(self) -> Iterator[str]:
        perception, path = self.perception, "algorithm.perception"
        if not isinstance(perception, NoPerceptionConfig) and self.policy_weight == 0:
            yield (
                f"{path}.name={self.perception.name} with algorithm.policy_weight=0: it works beside a policy loss "
                "only; raise the weight, or choose algorithm/perception=none"
            )
        if isinstance(perception, PapoConfig) and perception.entropy_weight > 0 and self.entropy_coefficient > 0:
            yield (
                f"{path}.entropy_weight={perception.entropy_weight:g} lowers the entropy that "
                f"algorithm.entropy_coefficient={self.entropy_coefficient:g} raises; set one of them to 0"
            )

    def _reward_problems(self) -> Iterator[str]:
        if self.advantage == "gdpo" and self.kl.coefficient > 0 and self.kl.place == "reward":
            yield (
                "algorithm.kl.place=reward takes the KL off the whole reward, and algorithm.advantage=gdpo looks at "
                "its parts; set the place to loss"
            )
        if self.advantage == "gdpo" and self.overlong.handling == "penalty":
            yield (
                "algorithm.overlong.handling=penalty is taken off the whole reward, and algorithm.advantage=gdpo looks "
                "at its parts; set the handling to mask or none"
            )

    def warnings(self) -> Iterator[str]:
        """Warn about losses outside the conditions of their paper."""
        off_policy = self.updates_per_batch > 1 or self.max_staleness > 0
        if isinstance(self.policy_loss, ReinforceLossConfig) and not self.policy_loss.ratio and off_policy:
            yield (
                "algorithm.policy_loss.ratio=false is right for the first update of a fresh batch alone, and "
                f"algorithm.updates_per_step={self.updates_per_step}, algorithm.passes_per_step={self.passes_per_step} "
                f"and algorithm.max_staleness={self.max_staleness} make others"
            )
        if self.policy_loss.name == "gspo" and self.reduction != "sequence_mean":
            yield (
                f"algorithm.reduction={self.reduction} is not GSPO's; its gradient is the paper's with sequence_mean"
            )
