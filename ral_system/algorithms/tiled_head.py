"""Values of next-token distributions a tile of tokens and vocabulary at a time: no tensor [N, V].

The forward pass keeps a few numbers per token; the backward pass computes every tile of logits again. With z the scaled
logits, p their softmax, H the entropy, r the log-prob of all tokens that are not kept, S the sum of the slopes
s(v) = ∂D/∂log p(v) of a divergence D, the gradient is

    ∂log p(t)/∂z(v) = 1[v = t] - p(v)          ∂r/∂z(v) = 1[v not kept] p(v) / exp(r) - p(v)
    ∂H/∂z(v) = -p(v) (log p(v) + H)            ∂D/∂z(v) = s(v) - p(v) S

so a tile needs nothing of the others. The backward pass goes over the tiles twice, once for the hidden states and once
for the weight, so each sum over tiles is a small float32 tensor. Both make the forward pass's tiles again, bit for
bit. Logits and all that is made of them are float32, also those of 16-bit weights, whose products are added up in
float32 and never rounded. Only a tile's gradient is rounded to the weight's dtype, to be multiplied.

Suffixes: N tokens, E hidden size, V vocabulary, K kept tokens; in a tile n tokens, v tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ral_system.algorithms.distillation import LEFT_OUT, divergence_terms, with_sampled
from ral_system.algorithms.token_read import TokenRead, TokenValues
from ral_system.device_kind import device_kind

DENSE_BYTES = 8 << 20
"""Float32 log-probs [N, V] of at most this size are not worth tiles."""
TILE_BYTES = 8 << 20
"""Size of one float32 tile. Up to four of them are in use at a time."""
_SUM_BYTES = 16 << 20
"""Size of a float32 sum over tiles, of a block of the hidden states' or of the weight's gradient."""
_LOWEST = -1e30
"""Stands for -inf as a maximum, so differences from it are not nan."""


def tiled_values(
    hidden_NE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    read: TokenRead,
    *,
    temperature: float,
    banned_token_ids: Tensor,
) -> TokenValues:
    """Values of softmax(logits / temperature) with banned tokens at probability 0, as `dense_values` has them."""
    head = _Head(hidden_NE.detach(), weight_VE.detach(), _detached(bias_V), temperature, banned_token_ids)
    kept = {name: ids_NK.to(hidden_NE.device) for name, ids_NK in read.kept.items()}
    if read.top is not None:
        kept["top"] = torch.cat([_top(head, rows, targets_N[rows], read.top) for rows in head.row_blocks()])
    log_probs_N, entropy_N, top1_N, log_sum_N, divergence_N, *of_kept = _Values.apply(
        hidden_NE, weight_VE, bias_V, head, targets_N, read, tuple(kept.values())
    )
    return TokenValues(
        log_probs_N,
        entropy_N,
        top1_N,
        dict(zip(kept, of_kept, strict=True)),
        divergence_N,
        kept.get("top"),
        _whole(head, log_sum_N) if read.whole else None,
    )


def tile_shape(tokens: int, hidden: int) -> tuple[int, int]:
    """Rows and columns of a tile. The float32 sums over tiles, [rows, E] and [columns, E], stay within their bound."""
    numbers, most = TILE_BYTES // 4, max(1, _SUM_BYTES // (4 * hidden))
    rows = max(1, min(tokens, isqrt(numbers), most))
    return rows, min(numbers // rows, most)


@dataclass
class _Head:
    hidden: Tensor
    """[N, E]"""
    weight: Tensor
    """[V, E]"""
    bias: Tensor | None
    """[V]"""
    temperature: float
    banned_token_ids: Tensor

    def __post_init__(self) -> None:
        self.ban_V = torch.zeros(len(self.weight), device=self.weight.device)
        self.ban_V[self.banned_token_ids] = -torch.inf

    def row_blocks(self) -> Iterator[slice]:
        return _blocks(len(self.hidden), tile_shape(*self.hidden.shape)[0])

    def column_blocks(self) -> Iterator[slice]:
        return _blocks(len(self.weight), tile_shape(*self.hidden.shape)[1])

    def logits(self, rows: slice, columns: slice) -> Tensor:
        """Scaled logits of a tile, banned tokens at -inf: float32 [n, v], to be written to."""
        logits_nv = _product(self.hidden[rows], self.weight[columns].t())
        if self.bias is not None:
            logits_nv += self.bias[columns]
        return logits_nv.div_(self.temperature).add_(self.ban_V[columns])


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        head: _Head,
        targets_N: Tensor,
        read: TokenRead,
        kept: tuple[Tensor, ...],
    ) -> tuple[Tensor | None, ...]:
        found: list[tuple[Tensor, ...]] = []
        for rows in head.row_blocks():
            found.append(_forward_block(head, rows, targets_N[rows], read, tuple(ids_NK[rows] for ids_NK in kept)))
        log_probs_N, entropy_N, top1_N, log_sum_N, divergence_N, slopes_N, *of_kept = map(
            torch.cat, zip(*found, strict=True)
        )
        ctx.save_for_backward(
            hidden_NE, weight_VE, bias_V, targets_N, log_sum_N, entropy_N, slopes_N, *kept, *(k[:, -1] for k in of_kept)
        )
        ctx.head, ctx.read = (head.temperature, head.banned_token_ids), read
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(top1_N, log_sum_N, *([] if read.entropy else [entropy_N]))
        return log_probs_N, entropy_N, top1_N, log_sum_N, divergence_N if read.teacher else None, *of_kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        hidden_NE, weight_VE, bias_V, targets_N, log_sum_N, entropy_N, slopes_N, *of_kept = ctx.saved_tensors
        log_prob_N, of_entropy_N, _, _, of_divergence_N, *of_kept_gradients = gradients
        base_N, ids, values, rests = torch.zeros_like(log_sum_N), [], [], []
        if log_prob_N is not None:
            base_N -= log_prob_N
            ids.append(targets_N[:, None])
            values.append(log_prob_N[:, None])
        if of_divergence_N is not None:
            base_N -= of_divergence_N * slopes_N
        kept, rest = of_kept[: len(of_kept) // 2], of_kept[len(of_kept) // 2 :]
        for ids_NK, rest_N, gradient in zip(kept, rest, of_kept_gradients, strict=True):
            if gradient is None:
                continue
            base_N -= gradient.sum(-1)
            ids.append(ids_NK)
            values.append(gradient[:, :-1])
            rests.append((ids_NK, rest_N, gradient[:, -1]))
        some = bool(ids)
        head = _Head(hidden_NE, weight_VE, bias_V, *ctx.head)
        slopes = _Slopes(
            head,
            log_sum_N,
            base_N,
            None if of_entropy_N is None else (entropy_N, of_entropy_N),
            (torch.cat(ids, -1), torch.cat(values, -1)) if some else None,
            rests,
            None if of_divergence_N is None else (ctx.read.teacher, of_divergence_N),
        )
        hidden_gradient = slopes.of_hidden() if ctx.needs_input_grad[0] else None
        weight_gradient, bias_gradient = slopes.of_weight() if any(ctx.needs_input_grad[1:3]) else (None, None)
        return hidden_gradient, weight_gradient, bias_gradient, None, None, None, None


def _forward_block(
    head: _Head, rows: slice, targets_n: Tensor, read: TokenRead, kept: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Values of a block of tokens: statistics of every tile, put together by the chain rule of the entropy."""
    tiles, target_n = [], torch.zeros(len(targets_n), device=targets_n.device)
    of_kept = [torch.zeros(ids.shape, device=ids.device) for ids in kept]
    for columns in head.column_blocks():
        logits_nv = head.logits(rows, columns)
        target_n += _picked(logits_nv, targets_n[:, None], columns)[:, 0]
        rest = []
        for ids_nK, so_far in zip(kept, of_kept, strict=True):
            so_far += _picked(logits_nv, ids_nK, columns)
            rest.append(_without(logits_nv, ids_nK, columns).logsumexp(-1))
        best_n, at_n = logits_nv.max(-1)
        below_nv = logits_nv.sub_(best_n.clamp(min=_LOWEST)[:, None])
        weights_nv = below_nv.exp()
        total_n = weights_nv.sum(-1)
        spread_n = weights_nv.mul_(below_nv.clamp_(min=LEFT_OUT)).sum(-1)
        entropy_n = torch.where(total_n > 0, total_n.log() - spread_n / total_n, 0.0)
        tiles.append((best_n + total_n.log(), entropy_n, best_n, at_n + columns.start, *rest))
        del logits_nv, below_nv, weights_nv
    log_sums_Cn, entropies_Cn, best_Cn, at_Cn, *rests = map(torch.stack, zip(*tiles, strict=True))
    log_sum_n = log_sums_Cn.logsumexp(0)
    log_share_Cn = (log_sums_Cn - log_sum_n).clamp(min=LEFT_OUT)
    entropy_n = (log_share_Cn.exp() * (entropies_Cn - log_share_Cn)).sum(0)
    top1_n = at_Cn.gather(0, best_Cn.argmax(0)[None])[0] == targets_n
    divergence_n, slopes_n = _divergence(head, rows, log_sum_n, read)
    return (
        target_n - log_sum_n,
        entropy_n,
        top1_n,
        log_sum_n,
        divergence_n,
        slopes_n,
        *(
            torch.cat([found - log_sum_n[:, None], (rest.logsumexp(0) - log_sum_n).clamp(min=LEFT_OUT)[:, None]], -1)
            for found, rest in zip(of_kept, rests, strict=True)
        ),
    )


def _divergence(head: _Head, rows: slice, log_sum_n: Tensor, read: TokenRead) -> tuple[Tensor, Tensor]:
    """D from the teacher's distributions and the sum of its slopes: [n] each."""
    divergence_n, slopes_n = torch.zeros_like(log_sum_n), torch.zeros_like(log_sum_n)
    for columns in head.column_blocks() if read.teacher else ():
        assert read.teacher is not None
        log_q_nv = read.teacher.block(rows, columns, log_sum_n.device)
        log_p_nv = head.logits(rows, columns).sub_(log_sum_n[:, None])
        terms_nv, slopes_nv = divergence_terms(log_p_nv, log_q_nv, read.teacher.kind, read.teacher.beta)
        divergence_n += terms_nv.sum(-1)
        slopes_n += slopes_nv.sum(-1)
    return divergence_n, slopes_n


@dataclass
class _Slopes:
    """The loss's gradient at the logits, tile by tile, and its products with weight and hidden states."""

    head: _Head
    log_sum: Tensor
    """[N] log of the sum of exp(logits)."""
    base: Tensor
    """[N] factor of p."""
    entropy: tuple[Tensor, Tensor] | None
    """[N] each: H, and the gradient of it."""
    picked: tuple[Tensor, Tensor] | None
    """[N, S] each: tokens, and what is added to their gradient."""
    rests: list[tuple[Tensor, Tensor, Tensor]]
    """Log-prob of the other tokens and its gradient, [N] each, for each set of kept tokens [N, K]."""
    divergence: tuple[Any, Tensor] | None
    """The teacher, and the gradient of the divergence from it [N]."""

    def of_hidden(self) -> Tensor:
        head = self.head
        found = torch.empty_like(head.hidden)
        for rows in head.row_blocks():
            total_nE = torch.zeros(found[rows].shape, device=found.device)
            for columns in head.column_blocks():
                _add_product(total_nE, self._tile(rows, columns), head.weight[columns])
            found[rows] = total_nE
        return found

    def of_weight(self) -> tuple[Tensor, Tensor | None]:
        head = self.head
        found, of_bias = (
            torch.empty_like(head.weight),
            None if head.bias is None else torch.empty_like(head.bias),
        )
        for columns in head.column_blocks():
            total_vE = torch.zeros(found[columns].shape, device=found.device)
            total_v = torch.zeros(len(total_vE), device=found.device)
            for rows in head.row_blocks():
                tile_nv = self._tile(rows, columns)
                _add_product(total_vE, tile_nv.t(), head.hidden[rows])
                if of_bias is not None:
                    total_v += tile_nv.sum(0, dtype=torch.float32)
            found[columns] = total_vE
            if of_bias is not None:
                of_bias[columns] = total_v
        return found, of_bias

    def _tile(self, rows: slice, columns: slice) -> Tensor:
        """Gradient at a tile's unscaled logits, in the weight's dtype: [n, v]."""
        logits_nv = self.head.logits(rows, columns)
        log_sum_n1, base_n1 = self.log_sum[rows, None], self.base[rows, None]
        others = []
        for ids_NK, rest_N, gradient_N in self.rests:
            log_other_nv = _without(logits_nv, ids_NK[rows], columns).sub_(rest_N[rows, None] + log_sum_n1)
            others.append(log_other_nv.exp_().mul_(gradient_N[rows, None]))
        log_p_nv = logits_nv.sub_(log_sum_n1)
        found_nv = log_p_nv.exp()
        if self.divergence is not None:
            teacher, gradient_N = self.divergence
            log_q_nv = teacher.block(rows, columns, log_p_nv.device)
            slopes_nv = divergence_terms(log_p_nv, log_q_nv, teacher.kind, teacher.beta)[1]
            others.append(slopes_nv.mul_(gradient_N[rows, None]))
        if self.entropy is None:
            found_nv.mul_(base_n1)
        else:
            entropy_n1, gradient_n1 = (t[rows, None] for t in self.entropy)
            factor_nv = log_p_nv.clamp_(min=LEFT_OUT).mul_(-gradient_n1).add_(base_n1 - gradient_n1 * entropy_n1)
            found_nv.mul_(factor_nv)
        for other_nv in others:
            found_nv += other_nv
        if self.picked is not None:
            ids_ns, values_ns = (t[rows] for t in self.picked)
            at, inside = _at(ids_ns, columns, found_nv.shape[1])
            found_nv.scatter_add_(-1, at, torch.where(inside, values_ns, 0.0))
        found_nv.masked_fill_(self.head.ban_V[columns].isneginf(), 0.0)
        return found_nv.div_(self.head.temperature).to(self.head.weight.dtype)


def _top(head: _Head, rows: slice, targets_n: Tensor, count: int) -> Tensor:
    """Ids of the most likely tokens, the sampled one among them: [n, K]."""
    count, best, ids = min(count, len(head.weight)), None, None
    for columns in head.column_blocks():
        logits_nv = head.logits(rows, columns)
        values, at = logits_nv.topk(min(count, logits_nv.shape[1]))
        at += columns.start
        if best is not None and ids is not None:
            values, at = torch.cat([best, values], -1), torch.cat([ids, at], -1)
        best, order = values.topk(min(count, values.shape[1]))
        ids = at.gather(-1, order)
    assert ids is not None
    return with_sampled(ids, targets_n)


def _whole(head: _Head, log_sum_N: Tensor) -> Tensor:
    """log p of the vocabulary in host memory: [N, V]."""
    found = torch.empty(len(head.hidden), len(head.weight))
    for rows in head.row_blocks():
        for columns in head.column_blocks():
            found[rows, columns] = head.logits(rows, columns).sub_(log_sum_N[rows, None]).cpu()
    return found


def _picked(values_nv: Tensor, ids_nk: Tensor, columns: slice) -> Tensor:
    """Values at the ids that lie in a tile, 0 for others: [n, k]."""
    at, inside = _at(ids_nk, columns, values_nv.shape[1])
    return torch.where(inside, values_nv.gather(-1, at), 0.0)


def _without(values_nv: Tensor, ids_nk: Tensor, columns: slice) -> Tensor:
    """A copy of the tile with -inf at the ids."""
    at, inside = _at(ids_nk, columns, values_nv.shape[1])
    return values_nv.scatter_reduce(-1, at, torch.where(inside, -torch.inf, torch.inf), "amin")


def _at(ids_nk: Tensor, columns: slice, width: int) -> tuple[Tensor, Tensor]:
    """Columns of the ids in a tile, and whether they lie in it; those that do not get a column that exists."""
    at = ids_nk - columns.start
    return at.clamp(0, width - 1), (at >= 0) & (at < width)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32. Tensor cores take 16-bit factors; other devices get copies, as large as a sum may be."""
    if left.dtype in (torch.bfloat16, torch.float16) and device_kind(left.device) == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if right.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += _product(left, right)


def _blocks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
