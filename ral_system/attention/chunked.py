"""Attention policies a block of rows at a time, in plain torch: memory linear in the number of tokens.

With a_h, w_h, E_h, L_h as in the forward pass (E_h and L_h: log-sum-exp of head h's logits over the keys that count,
and over all it sees) and slopes g = ∂D/∂p, the chain rule through the mixture p = Σ_h w_h a_h gives for head h

    c_h = Σ_i a_h(i) g(i),   c = Σ_h w_h c_h,   v_h = w_h (c_h - c) exp(E_h - L_h)
    ∂D/∂logit_h(i) = w_h a_h(i) (g(i) - c) - v_h a_h(i)          on the keys that count
                   = -w_h (c_h - c) exp(logit_h(i) - L_h)        on seen keys that do not, the row's own among them

For one head this is p(i) (g(i) - c), the paper's 3.4. Suffixes: T tokens, H query heads, K key heads, D head
dimension, R rows of a block, S keys up to the last row of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ral_system.attention.policy import visibility
from ral_system.attention.sequence import SequenceGroup, softmax_over_heads, total
from ral_system.attention.window import Window
from ral_system.config.choices import Heads
from ral_system.device_kind import device_kind

_BLOCK_BYTES = {"cpu": 8 << 20, "cuda": 128 << 20}
"""Size of one block's logits."""


@dataclass
class _Block:
    """Values that the backward pass of one block needs."""

    rows: Tensor
    """[R]"""
    query: Tensor
    """[K, N, D], scaled; N = H / K · R."""
    weights: Tensor
    """[H, R, S] exp(logit - its row's maximum), 0 on keys that do not count."""
    total: Tensor
    """[H, R] sum of the weights; 1 where a row has no key that counts."""
    mixture: Tensor
    """[H, R] w_h; 0 where a row has no key that counts. With heads="each": 1."""
    left_out: tuple[Tensor, Tensor] | None
    """Values for heads="mean", otherwise None: exp(logit - L) of seen keys that do not count ([H, R, S], or [H, R] for
    the row alone), and exp(E - L) [H, R]."""


class ChunkedKernels:
    """Forward and backward of blocks of rows over the keys of one call. Deterministic; computes in ≥ float32."""

    def __init__(
        self,
        key_TKD: Tensor,
        *,
        scale: float,
        branches: Tensor | None,
        key_mask: Tensor | None,
        heads: Heads,
        sequence: SequenceGroup | None = None,
        window: Window | None = None,
    ) -> None:
        precision = torch.promote_types(key_TKD.dtype, torch.float32)
        self._key_KTD = key_TKD.to(precision).transpose(0, 1).contiguous()
        self._scale = scale
        self._branches = branches
        self._key_mask = key_mask
        self._heads = heads
        self._sequence = sequence
        self._window = window

    def rows_per_block(self, query_heads: int) -> int:
        """Return how many rows fit the block size, at least one."""
        row_bytes = query_heads * self._key_KTD.shape[1] * self._key_KTD.element_size()
        return max(1, _BLOCK_BYTES[device_kind(self._key_KTD.device)] // row_bytes)

    def policy(self, query_RHD: Tensor, rows_R: Tensor) -> tuple[Tensor, _Block]:
        """p [R, T] or [H, R, T] of a block of rows."""
        rows, heads, dim = query_RHD.shape
        key_heads, tokens, _ = self._key_KTD.shape
        span = int(rows_R.max()) + 1
        key_KSD = self._key_KTD[:, :span]
        query_KND = query_RHD.to(key_KSD.dtype).view(rows, key_heads, -1, dim).permute(1, 2, 0, 3)
        query_KND = query_KND.reshape(key_heads, -1, dim) * self._scale
        logits_HRS = torch.bmm(query_KND, key_KSD.transpose(1, 2)).view(heads, rows, span)

        seen_RT, counts_RT = visibility(rows_R, tokens, self._branches, self._key_mask, self._window)
        seen_RS, counts_RS = seen_RT[:, :span], counts_RT[:, :span]
        left_out_logits = self._left_out_logits(logits_HRS, rows_R, seen_RS, counts_RS)
        logits_HRS.masked_fill_(~counts_RS, float("-inf"))
        some_R = counts_RS.any(-1)
        top_HR = torch.where(some_R, logits_HRS.amax(-1), 0.0)
        weights_HRS = logits_HRS.sub_(top_HR[..., None]).exp_()
        total_HR = torch.where(some_R, weights_HRS.sum(-1), 1.0)
        p = weights_HRS.new_zeros((heads, rows, tokens) if self._heads == "each" else (rows, tokens))
        if left_out_logits is None:
            mixture_HR, left_out = some_R.to(total_HR.dtype).expand(heads, rows), None
            p[..., :span] = weights_HRS / total_HR[..., None]
        else:
            log_kept_HR = top_HR + total_HR.log()
            log_left_HR = left_out_logits if left_out_logits.ndim == 2 else left_out_logits.logsumexp(-1)
            log_seen_HR = torch.logaddexp(log_kept_HR, log_left_HR)
            mixture_HR = torch.where(some_R, softmax_over_heads(log_kept_HR - log_seen_HR, self._sequence), 0.0)
            log_seen = log_seen_HR if left_out_logits.ndim == 2 else log_seen_HR[..., None]
            left_out = (left_out_logits - log_seen).exp(), (log_kept_HR - log_seen_HR).exp()
            p[:, :span] = total(torch.einsum("hrs,hr->rs", weights_HRS, mixture_HR / total_HR), self._sequence)
        return p, _Block(rows_R, query_KND, weights_HRS, total_HR, mixture_HR, left_out)

    def gradient(self, block: _Block, slopes: Tensor, key_gradient_KTD: Tensor) -> Tensor:
        """Gradient of the block's query rows [R, H, D], from ∂D/∂p; adds the keys' share to `key_gradient`.

        Uses up the block.
        """
        heads, rows, span = block.weights.shape
        slopes = slopes[..., :span]
        weights_HRS, total_HR, w_HR = block.weights, block.total, block.mixture
        c_HR = (weights_HRS * slopes).sum(-1) / total_HR
        if block.left_out is None:
            logit_gradient = weights_HRS.mul_((w_HR / total_HR)[..., None]).mul_(slopes - c_HR[..., None])
        else:
            c_R = total((w_HR * c_HR).sum(0), self._sequence)
            away_HR = w_HR * (c_HR - c_R)
            left_out, kept_share_HR = block.left_out
            offset_HR = w_HR * c_R + away_HR * kept_share_HR
            factor_HRS = (w_HR / total_HR)[..., None] * slopes - (offset_HR / total_HR)[..., None]
            logit_gradient = weights_HRS.mul_(factor_HRS)
            if left_out.ndim == 2:
                own_HR1 = block.rows.expand(heads, rows)[..., None]
                logit_gradient.scatter_add_(-1, own_HR1, -(away_HR * left_out)[..., None])
            else:
                logit_gradient.addcmul_(away_HR[..., None], left_out, value=-1)
        logit_gradient_KNS = logit_gradient.view(block.query.shape[0], -1, span)
        key_gradient_KTD[:, :span].baddbmm_(logit_gradient_KNS.transpose(1, 2), block.query)
        query_gradient_KND = torch.bmm(logit_gradient_KNS, self._key_KTD[:, :span]) * self._scale
        return query_gradient_KND.view(heads, rows, -1).transpose(0, 1)

    def _left_out_logits(self, logits_HRS: Tensor, rows_R: Tensor, seen_RS: Tensor, counts_RS: Tensor) -> Tensor | None:
        """Logits of what a row sees and its policy leaves out: only itself ([H, R]), or more ([H, R, S])."""
        if self._heads == "each":
            return None
        if self._key_mask is None:
            return logits_HRS.gather(-1, rows_R.expand(logits_HRS.shape[0], -1)[..., None])[..., 0]
        return logits_HRS.masked_fill(~(seen_RS & ~counts_RS), float("-inf"))
