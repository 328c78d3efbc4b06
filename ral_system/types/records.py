"""A frozen policy's attention rows and token distributions as host arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class AttentionRecord:
    """A frozen policy's attention rows of one sample and layer, at one weight version. Dies with its batch.

    Example (R = 2, T = 5, the two largest entries of each row): `AttentionRecord(version=12, tokens=5,
    values=array([[0.7, 0.2], [0.5, 0.3]]), indices=array([[0, 3], [4, 1]]), tail=array([0.1, 0.2]))`
    """

    version: int
    """Version of the weights that made it; for a model other than the learner, that of the rollout it read."""
    tokens: int
    """T, the length of the key axis."""
    values: np.ndarray
    """[R, T] or, with `indices`, [R, K]; float32, or uint16 that hold bfloat16 bits. With each head: [H, R, …]."""
    indices: np.ndarray | None = None
    """int32 [R, K], the keys of `values`."""
    tail: np.ndarray | None = None
    """float32 [R], the mass on all other keys."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(a.nbytes for a in (self.values, self.indices, self.tail) if a is not None)


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A frozen policy's next-token distributions at one sample's response tokens. Dies with its batch.

    Example (R = 2, of 211 tokens the two most likely, and all others):
    `TokenRecord(log_probs=array([[-0.1, -2.6, -4.0], [-0.7, -0.8, -3.2]]), ids=array([[7, 21], [3, 2]]))`
    """

    log_probs: np.ndarray
    """float32 [R, V] or, with `ids`, [R, K + 1]: the last is that of all other tokens together."""
    ids: np.ndarray | None = None
    """int32 [R, K], the tokens of `log_probs`."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.log_probs.nbytes + (0 if self.ids is None else self.ids.nbytes)


@dataclass(frozen=True, slots=True)
class SampleScores:
    """A frozen policy's view of one sample: old, reference or teacher.

    Example (R = 2): `SampleScores(log_probs=array([-0.1, -1.2]), attention=(AttentionRecord(…),),
    row_statistics={"visual_mass": array([0.31, 0.28]), …})`
    """

    log_probs: np.ndarray
    """float32 [R]"""
    attention: tuple[AttentionRecord, ...] = ()
    """One record per probed layer; empty when not asked for."""
    row_statistics: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the last probed layer's rows look at (`attention.metrics`); float32, one figure per attention row."""
    tokens: TokenRecord | None = None
    """A teacher's distributions over the vocabulary."""
    glances: np.ndarray | None = None
    """float32 [layers, N] or [layers, H, N]: how much its rows look, added up, at each of the N keys that its group
    shares (`attention.group.GroupAttention.glances`)."""
    group_glances: np.ndarray | None = None
    """[G, …], the glances of its whole group, response by response; the group's samples share the array."""
    visual_reward: float | None = None
    """How much the response looks at pictures (`attention.visual_reward`); None where undefined or not asked for."""
    blinded_log_probs: np.ndarray | None = None
    """float32 [R], with parts of its media black; None for text alone, or when not asked for."""
    visual_similarity: np.ndarray | None = None
    """float32 [R], how alike its tokens are to its pictures, from -1 to 1 (`models.similarity`); None for text alone,
    or when not asked for."""
    advantage_factor: float = 1.0
    """What VPPO or VGPO multiplies the sample's advantage by."""
    token_factors: np.ndarray | None = None
    """float32 [R], what VGPO multiplies the advantage of each token by besides; None: 1."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        records = (*self.attention, *((self.tokens,) if self.tokens else ()))
        asked = (
            *(self.glances, self.group_glances),
            *(self.blinded_log_probs, self.visual_similarity, self.token_factors),
        )
        arrays = (self.log_probs, *self.row_statistics.values(), *(found for found in asked if found is not None))
        return sum(record.nbytes for record in records) + sum(array.nbytes for array in arrays)


Scores = dict[str, SampleScores]
"""Sample id → scores. Held by one rank, handed over by reference, dropped with its batch."""


@dataclass(frozen=True, slots=True)
class VisualAttention:
    """Attention mass on each visual token of a sample's media, mean over the rows of its answer.

    Example (one picture of 2 × 2 visual tokens, half of all attention on it):
    `VisualAttention((array([[[0.4, 0.1], [0.0, 0.0]]]),))`
    """

    maps: tuple[np.ndarray, ...]
    """A map for each image, then for each video: shares of the rows' attention, float32 [frames, height, width]."""
