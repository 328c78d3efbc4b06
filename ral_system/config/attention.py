"""The `algorithm.attention` group: the attention policy, and what trains it."""

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
    """lambda_attn; 0 is plain GRPO."""
    objective: AttentionObjectiveConfig
    """What trains attention."""
    advantages: Literal["own", "permuted", "absolute", "negative_absolute"]
    """Controls, for the attention objective alone. permuted: the advantages of a group change places, and nothing can
    be learned from them. absolute and negative_absolute (RAL and sharpening) take |A| and -|A|: every response is
    pulled towards its anchor or sharpened, or pushed away or flattened."""
    anchor: Literal["old", "reference", "ema"]
    """Which rows the policy's are compared with: its own at the rollout's weights (the paper), the frozen
    reference's, or those of a moving average of the trained weights."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Share of the average that an optimiser update leaves, with anchor=ema."""
    divergence: Divergence
    """Policy against anchor (the paper: jsd); forward_kl is KL(anchor ‖ policy)."""
    layers: Layers | Annotated[tuple[int, ...], Field(min_length=1)]
    """Decoder layers whose attention is read, by index (negative from the end), or the last or all of those with
    softmax attention; the loss is their mean."""
    heads: Heads
    """One policy from the mean over heads (the paper), or one per head, whose divergences are averaged."""
    rows: Rows
    """Rows of the policy: those whose input is a generated token (the paper), those that chose one, those inside the
    answer (all of a response that has none), or those of the question's text."""
    keys: Keys
    """Keys that count: all earlier ones (the paper), visual tokens, the prompt's, or all but the first four tokens."""
    reduction: Reduction
    """E_t in Eq 3: mean over all rows of the update, mean over sequences of each one's mean, or of each one's sum (as
    Eq 5 writes it)."""
    gradient_share_every: NonNegative
    """Rollout batches between measurements of the attention term's share of the gradient at the queries of its rows
    (of all parameters' it is less); 0 never."""
    max_gradient_share: Annotated[float, Field(gt=0, lt=1)] | None
    """Scale the term down, update by update, to this share of the same where it is larger; costs one more forward pass
    per update. null never."""
    target_gradient_share: Annotated[float, Field(gt=0, lt=1)] | None
    """Scale the term up or down, update by update, to this share of the same; `weight` then does not matter. Costs
    one more forward pass per update. Where the term has no gradient, as RAL's in the first update on policy, nothing
    makes one; where only the token loss has none, the term is left out. null never."""
    record: Literal["dense", "top_k"]
    """How the anchor's rows are kept: whole, or their largest entries and the mass of the rest (a lower bound)."""
    top_k: Positive
    """Entries kept per row with record=top_k."""
    record_dtype: Dtype
    """Precision of the entries; bfloat16 halves them and adds noise of about 6e-7 nats to a JSD."""
    backend: Backend
    """How divergences are computed; all agree. dense: memory heads · rows · tokens. chunked: linear in tokens. triton:
    the same, fast on CUDA devices. auto: triton on a CUDA device that has it, chunked elsewhere."""

    def problems(self) -> Iterator[str]:
        """Refuse settings of an anchor, a record or a term that is not there."""
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
        """Refuse what the objective does not read, and keys and rows by which it cannot compare."""
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
        """Keys at which the looks of a group's responses are compared."""
        return "prompt" if self.keys == "prompt" else "visual"

    @property
    def gradient_share(self) -> float | None:
        """Share that is held or not exceeded; None without one."""
        return self.max_gradient_share if self.target_gradient_share is None else self.target_gradient_share
