"""The language-model head, which reads next-token distributions without keeping them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ral_system.algorithms import tiled_head
from ral_system.algorithms.log_probs import sampling_log_softmax
from ral_system.algorithms.token_read import TokenRead, TokenValues, dense_values

_ROUNDED = (torch.bfloat16, torch.float16)
"""Dtypes that a dense product would round logits to. Tiles keep them in float32."""


class TokenHead(nn.Linear):
    """A linear head with a second method of use: called with `read`, it returns token values in place of logits.

    All of the weight's uses, every tile's among them, lie in this module's forward pass, so ZeRO-3 gathers the weight
    once for a forward and once for a backward pass, however many tokens a rank has.
    """

    @classmethod
    def of(cls, head: nn.Linear) -> TokenHead:
        """Return a head with these parameters themselves: tied ones stay tied."""
        if isinstance(head, cls):
            return head
        found = cls(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        found.weight, found.bias = head.weight, head.bias
        return found.train(head.training)

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        targets_N: Tensor | None = None,
        read: TokenRead | None = None,
        temperature: float = 1.0,
        banned_token_ids: Tensor | None = None,
    ) -> Tensor | TokenValues:
        """Logits of hidden states [..., E], or with `read` values of the N distributions at [N, E]."""
        if read is None:
            return super().forward(hidden)
        assert targets_N is not None and banned_token_ids is not None
        if self.weight.dtype in _ROUNDED or 4 * len(targets_N) * self.out_features > tiled_head.DENSE_BYTES:
            return tiled_head.tiled_values(
                hidden,
                self.weight,
                self.bias,
                targets_N,
                read,
                temperature=temperature,
                banned_token_ids=banned_token_ids,
            )
        logits_NV = super().forward(hidden)
        log_softmax_NV = sampling_log_softmax(logits_NV, temperature=temperature, banned_token_ids=banned_token_ids)
        return dense_values(log_softmax_NV, targets_N, read)
