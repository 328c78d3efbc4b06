"""The `algorithm.attention` group: the attention policy and its loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from ral_system.config.base import Divergence, Group, NonNegative, NonNegativeFloat, Positive, without_effect
from ral_system.config.choices import Backend, Dtype, Heads, Keys, Layers, Reduction, Rows


class AttentionConfig(Group):
    """The attention policy and its loss (RAL, Eq 2-4)."""

    weight: NonNegativeFloat
    """lambda_attn; 0 is plain GRPO."""
    anchor: Literal["old", "reference", "ema"]
    """Which rows the policy's are compared with: its own at the rollout's weights (the paper), the frozen
    reference's, or those of a moving average of the trained weights."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Share of the average that an optimiser update leaves, with anchor=ema."""
    divergence: Divergence
    """Policy against anchor (the paper: jsd); forward_kl is KL(anchor ‖ policy)."""
    layers: Layers | Annotated[tuple[int, ...], Field(min_length=1)]
    """Decoder layers whose attention is read, by index (negative from the end); the loss is their mean."""
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
            yield from without_effect(self, path, reason, remedy, anchor="old", max_gradient_share=None)
        if self.anchor != "ema":
            reason, remedy = f"{path}.anchor={self.anchor}", "set the anchor to ema"
            yield from without_effect(self, path, reason, remedy, ema_decay=0.99)
        if self.record == "dense":
            yield from without_effect(self, path, f"{path}.record=dense", "set record to top_k", top_k=64)
