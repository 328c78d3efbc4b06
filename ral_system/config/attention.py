"""The `algorithm.attention` group: the attention policy and its objective."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from ral_system.config.attention_objective import AttentionObjectiveConfig
from ral_system.config.base import Divergence, Group, NonNegative, NonNegativeFloat, Positive
from ral_system.config.choices import Backend, Dtype, Heads, Keys, Layers, Reduction, Rows
from ral_system.config.inert import without_effect


class AttentionConfig(Group):
    """The attention policy and its objective (RAL, Eq 2-4)."""

    weight: NonNegativeFloat
    """Weight of the attention objective (lambda_attn). With 0 it is not trained, as in plain GRPO."""
    objective: AttentionObjectiveConfig
    """Objective that trains attention."""
    advantages: Literal["own", "permuted", "absolute", "negative_absolute"]
    """Advantages that the attention objective uses; all but own are controls. permuted: those of a group are given to
    other members of it, so they carry no information. absolute and negative_absolute (for ral and sharpening): |A| and
    -|A|, so every response is pulled towards its anchor or sharpened, or pushed away or flattened."""
    anchor: Literal["old", "reference", "ema"]
    """Model whose rows the policy's rows are compared with. old: the policy with the weights that generated the rollout
    (the paper). reference: the frozen reference. ema: a moving average of the trained weights."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the moving average per optimiser update, with anchor=ema."""
    divergence: Divergence
    """Divergence between the rows of policy and anchor (the paper: jsd). forward_kl is KL(anchor ‖ policy)."""
    layers: Layers | Annotated[tuple[int, ...], Field(min_length=1)]
    """Decoder layers whose attention is read: a list of indices (negative ones count from the end), or the last or all
    layers with softmax attention. The loss is their mean."""
    heads: Heads
    """mean: one attention policy, the mean over heads (the paper). each: one policy per head; their divergences are
    averaged."""
    rows: Rows
    """Rows of the attention policy. generated: those whose input is a generated token (the paper). predicting: those
    that predict one. answer: those inside the answer, or all of a response without an answer. instruction: those of the
    question's text."""
    keys: Keys
    """Keys over which rows are normalised. all: every earlier position (the paper). visual: visual tokens. prompt: the
    prompt. no_sinks: all but the first four tokens."""
    reduction: Reduction
    """E_t in Eq 3. token_mean: mean over all rows of the update. sequence_mean and sequence_sum: mean over sequences of
    the mean, or the sum (as in Eq 5), of each."""
    gradient_share_every: NonNegative
    """Number of rollout batches between measurements of the attention term's share of the gradient at the queries of
    its rows; its share of the gradient of all parameters is smaller. 0: never."""
    max_gradient_share: Annotated[float, Field(gt=0, lt=1)] | None
    """Upper limit on the attention term's share of that gradient: an update with a larger share scales the term down to
    it. Costs one more forward pass per update. null: no limit."""
    target_gradient_share: Annotated[float, Field(gt=0, lt=1)] | None
    """Share of that gradient to which every update scales the term, up or down; `weight` then has no effect. Costs one
    more forward pass per update. A term whose gradient is 0 or within rounding errors, such as RAL's in the first
    on-policy update, is not scaled; if only the token loss has no gradient, the term is left out. null: no scaling."""
    record: Literal["dense", "top_k"]
    """Form in which the anchor's rows are stored. dense: whole rows. top_k: the largest entries and the sum of the
    rest; divergences are then lower bounds."""
    top_k: Positive
    """Number of entries stored per row, with record=top_k."""
    record_dtype: Dtype
    """Data type of the stored entries. bfloat16 halves the memory and adds noise of about 6e-7 nats to a JSD."""
    backend: Backend
    """Implementation of the divergences; all give the same values. dense: memory grows with heads · rows · tokens.
    chunked: memory is linear in tokens. triton: chunked as a kernel, fast on CUDA devices. auto: triton on CUDA devices
    where Triton is installed, otherwise chunked."""

    def problems(self) -> Iterator[str]:
        """Refuse settings of an anchor, a record or a term that is not used."""
        path = "algorithm.attention"
        if self.weight == 0:
            reason, remedy = f"{path}.weight=0", "raise the weight"
            shares = ("gradient_share_every", "max_gradient_share", "target_gradient_share")
            yield from without_effect(self, path, reason, remedy, "anchor", "advantages", *shares)
            if self.objective.name != "ral":
                yield (
                    f"{path}.objective.name={self.objective.name} has no effect with {reason}; {remedy}, or choose "
                    "algorithm=grpo"
                )
        if self.max_gradient_share is not None and self.target_gradient_share is not None:
            yield (
                f"{path}.max_gradient_share={self.max_gradient_share:g} has no effect with "
                f"{path}.target_gradient_share={self.target_gradient_share:g}; set one of them to null"
            )
        which = "max_gradient_share" if self.target_gradient_share is None else "target_gradient_share"
        if self.weight > 0 and self.target_gradient_share is not None:
            reason = f"{path}.target_gradient_share={self.target_gradient_share:g}, which takes its place"
            yield from without_effect(self, path, reason, "set that to null", "weight", whole=False)
        if self.gradient_share is not None:
            reason = f"{path}.{which}={self.gradient_share:g}, which measures the share in every update"
            yield from without_effect(self, path, reason, "set that to null", "gradient_share_every")
        yield from self._objective_problems(path)
        if self.anchor != "ema":
            reason, remedy = f"{path}.anchor={self.anchor}", "set the anchor to ema"
            yield from without_effect(self, path, reason, remedy, "ema_decay")
        if self.record == "dense":
            yield from without_effect(self, path, f"{path}.record=dense", "set record to top_k", "top_k")

    def _objective_problems(self, path: str) -> Iterator[str]:
        """Refuse settings that the objective does not read, and keys and rows that it cannot compare."""
        if self.objective.name == "sharpening" and self.record == "top_k":
            yield (
                f"{path}.record=top_k with {path}.objective.name=sharpening: top_k keeps only the sum of a row's tail, "
                "which cannot be sharpened; set it to dense"
            )
        if not (self.objective.reads_glances or self.objective.reads_evidence):
            return
        reason = f"{path}.objective.name={self.objective.name}"
        if self.objective.reads_evidence and self.keys != "visual":
            yield f"{path}.keys={self.keys} with {reason}: its target is over pictures and videos; set it to visual"
        if self.objective.reads_glances and self.keys not in ("visual", "prompt"):
            yield (
                f"{path}.keys={self.keys} with {reason}: responses are compared by the keys that they share; set it to "
                "visual or prompt"
            )
        if self.rows == "instruction":
            yield f"{path}.rows=instruction with {reason}: all responses have the same rows; set it to generated"
        if self.advantages not in ("own", "permuted"):
            yield (
                f"{path}.advantages={self.advantages} with {reason}: only ral and sharpening support it; set it to own "
                "or permuted"
            )
        if not self.objective.trains_divergence:
            remedy = "choose algorithm/attention/objective=ral"
            yield from without_effect(self, path, reason, remedy, "anchor", "reduction")

    @property
    def compares_looks(self) -> bool:
        """Whether training compares where the responses of a group look."""
        return self.weight > 0 and self.objective.reads_glances

    @property
    def glance_keys(self) -> Literal["visual", "prompt"]:
        """Keys at which the attention of a group's responses is compared."""
        return "prompt" if self.keys == "prompt" else "visual"

    @property
    def coefficient(self) -> float:
        """Factor on the objective before its share is bounded or held: `weight`, or 1 where
        `target_gradient_share` takes its place.
        """
        return self.weight if self.target_gradient_share is None else 1.0

    @property
    def gradient_share(self) -> float | None:
        """Target or limit of the share of the gradient; None without one."""
        return self.max_gradient_share if self.target_gradient_share is None else self.target_gradient_share
