"""One reading of a model's attention: which rows, over which keys, at which layers and heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ral_system.config.choices import Backend, Heads, Keys, Layers, Rows

if TYPE_CHECKING:
    from ral_system.config.attention import AttentionConfig


@dataclass(frozen=True, slots=True)
class AttentionRead:
    """What to read in a forward pass; the defaults are the attention policy of arXiv 2602.04884, Eq 2.

    Example: the rows of the answer at all layers, over visual keys only:
    `AttentionRead(rows="answer", keys="visual", layers="all")`
    """

    rows: Rows = "generated"
    """Rows of each sequence (`selection.select_rows`)."""
    keys: Keys = "all"
    """Keys that count (`selection.select_keys`)."""
    layers: Layers | tuple[int, ...] = "last"
    """Text layers, by depth, negative ones from the end; or the last or all of those with softmax attention."""
    heads: Heads = "mean"
    """One policy for the mean over heads, or one for each head."""
    backend: Backend = "auto"
    """What computes divergences and policies from query and key."""
    whole: bool = False
    """Keep the query of every token, not of the rows alone: gradients can then be taken by it."""

    @classmethod
    def of(cls, settings: AttentionConfig) -> AttentionRead:
        """The read that `algorithm.attention` describes."""
        return cls(settings.rows, settings.keys, settings.layers, settings.heads, settings.backend)


QUESTION_AT_ALL_LAYERS = AttentionRead(rows="instruction", layers="all")
"""The question's rows over all keys at every layer: what the visual attention score and AVAR's guidance read."""


def response_at_all_layers(settings: AttentionConfig) -> AttentionRead:
    """The response's rows over all keys at every layer: what `reward.visual` is computed from."""
    return AttentionRead(layers="all", backend=settings.backend)
