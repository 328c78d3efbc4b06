"""Linear attention over the examples of a prompt: self-attention, and cross-attention between modalities.

Suffixes as in `factor_model`; L layers, E = P + 1 features of a token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ral_system.studies.icl.factor_model import FEATURES, WIDTH, Context


class Read(NamedTuple):
    """A model's outputs for its queries, and where it looked."""

    predictions: Tensor
    """[B, Q]."""
    weights: Tensor
    """[L, B, Q, N], or [L, B, M, Q, N] where modalities have weights of their own. They are linear: they may be
    negative and need not add up to 1."""


class LinearSelfAttention(nn.Module):
    """Layers of linear self-attention over tokens (x1, x2, y), with y = 0 in a query's token, where the answer appears.

    Layer: e ← e + V (1/N) Σ_i e_i (e_i' K e) for the examples and the queries; all V and K are free.
    """

    def __init__(self, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        shape = (depth, FEATURES + 1, FEATURES + 1)
        values, scores = (0.02 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        values[:, -1, -1] += 0.3
        scores += torch.diag(torch.tensor([0.1] * FEATURES + [0.0], dtype=torch.float64))
        self.values_LEE, self.scores_LEE = nn.Parameter(values), nn.Parameter(scores)

    def forward(self, context: Context, queries_BMQD: Tensor) -> Read:
        """Predict the response of every query."""
        examples = torch.cat([_flat(context.views), context.responses[..., None]], -1)
        queries = _flat(queries_BMQD)
        queries = torch.cat([queries, torch.zeros_like(queries[..., :1])], -1)
        weights = []
        for values_EE, scores_EE in zip(self.values_LEE, self.scores_LEE, strict=True):
            keys = examples @ scores_EE / examples.shape[1]
            read = examples @ values_EE.T
            weights.append(queries @ keys.transpose(1, 2))
            own = examples @ keys.transpose(1, 2)
            queries, examples = queries + weights[-1] @ read, examples + own @ read
        return Read(queries[..., -1], torch.stack(weights))


class CrossAttention(nn.Module):
    """Layers of linear cross-attention from a query's state to the examples' views, and a readout of their responses.

    h_0 = 0; layer: h ← h + alpha x + beta (1/N) Σ_i x_i (x_i' h), which brings the query's own views x back in;
    readout: (1/N) Σ_i y_i (x_i' h). Two numbers are trained, whatever the depth. With beta = -alpha the layers are
    Richardson's iteration for (1/N Σ x_i x_i')⁻¹ x (`factor_model.depth_excess`). One layer is one layer of linear
    self-attention with Γ = alpha I.

    The state has a part for each modality. Their scores are added up, so one modality's state decides how much is read
    of the other. The control `within` leaves each modality to its own scores: it inverts the covariance's diagonal
    blocks, which is not enough at any depth.
    """

    def __init__(self, depth: int, *, within: bool = False) -> None:
        super().__init__()
        self.depth, self.within = depth, within
        self.inject = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        self.attend = nn.Parameter(torch.tensor(-0.1, dtype=torch.float64))

    def forward(self, context: Context, queries_BMQD: Tensor) -> Read:
        """Predict the response of every query."""
        states, views, weights = torch.zeros_like(queries_BMQD), context.views, []
        for _ in range(self.depth):
            weights.append(self._weights(states, views))
            states = states + self.inject * queries_BMQD + self.attend * (weights[-1] @ views)
        scores_BQN = (states @ views.transpose(-1, -2)).sum(1) / views.shape[2]
        return Read((scores_BQN @ context.responses[..., None]).squeeze(-1), torch.stack(weights))

    def _weights(self, states_BMQD: Tensor, views_BMND: Tensor) -> Tensor:
        scores_BMQN = states_BMQD @ views_BMND.transpose(-1, -2) / views_BMND.shape[2]
        return scores_BMQN if self.within else scores_BMQN.sum(1, keepdim=True).expand_as(scores_BMQN)


def _flat(views_BMND: Tensor) -> Tensor:
    """[B, N, P]."""
    assert views_BMND.shape[-1] == WIDTH
    return views_BMND.transpose(1, 2).flatten(2)
