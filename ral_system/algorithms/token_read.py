"""What a forward pass reads at response tokens, and the dense formulas for their next-token distributions.

Suffixes: N response tokens of a micro-batch, sample by sample; V vocabulary; K kept tokens; R tokens of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ral_system.algorithms.distillation import kept_and_rest, token_divergence, top_tokens
from ral_system.algorithms.log_probs import entropy
from ral_system.config.choices import TokenDivergence


@dataclass(frozen=True, slots=True)
class Teacher:
    """Whole distributions to compare the pass with."""

    log_q: tuple[Tensor, ...]
    """float32 [R, V] of each sample, in host memory."""
    kind: TokenDivergence
    beta: float

    def block(self, rows: slice, tokens: slice, device: torch.device) -> Tensor:
        """log q of rows of the micro-batch and tokens of the vocabulary, on the device."""
        parts, start = [self.log_q[0][:0, tokens].to(device)], 0  # of no rows as well
        for of_sample in self.log_q:
            first, last = max(rows.start - start, 0), rows.stop - start
            if first < len(of_sample) and last > 0:
                parts.append(of_sample[first:last, tokens].to(device))
            start += len(of_sample)
        return torch.cat(parts)

    def of(self, chosen_N: Tensor) -> Teacher:
        """Select response tokens by a mask, on CPU."""
        masks = chosen_N.split([len(of_sample) for of_sample in self.log_q])
        return replace(self, log_q=tuple(q[mask] for q, mask in zip(self.log_q, masks, strict=True)))


@dataclass(frozen=True, slots=True)
class TokenRead:
    """What to read besides log-probs, entropies and whether the response token is the most likely one.

    Example: `TokenRead(entropy=True, kept={"rollout": ids_NK})`
    """

    entropy: bool = False
    """The entropy is differentiable."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """int64 [N, K] by name: tokens whose log-probs are read, with that of all others together."""
    teacher: Teacher | None = None
    top: int | None = None
    """Read the K most likely tokens, the sampled one among them, as kept tokens "top". For frozen models."""
    whole: bool = False
    """Read all of every distribution, into host memory. For frozen models."""
    visual_similarity: bool = False
    """Read how alike the tokens are to what the policy sees (`models.similarity`)."""

    def of(self, chosen_N: Tensor) -> TokenRead:
        """Select response tokens by a mask, on CPU."""
        kept = {name: ids_NK[chosen_N] for name, ids_NK in self.kept.items()}
        return replace(self, kept=kept, teacher=None if self.teacher is None else self.teacher.of(chosen_N))


class TokenValues(NamedTuple):
    """What was read. Differentiable unless said otherwise; a tuple, because ZeRO-3 looks for tensors in it."""

    log_probs: Tensor
    """float32 [N]"""
    entropy: Tensor
    """float32 [N] in nats; detached unless it was asked for."""
    top1: Tensor
    """bool [N]"""
    kept: dict[str, Tensor]
    """float32 [N, K + 1] by name: log-probs of the kept tokens and, last, of all others together."""
    divergence: Tensor | None = None
    """float32 [N] from the teacher's distribution."""
    top_ids: Tensor | None = None
    """int64 [N, K]"""
    whole: Tensor | None = None
    """float32 [N, V] log-probs in host memory, detached."""


def dense_values(log_softmax_NV: Tensor, targets_N: Tensor, read: TokenRead) -> TokenValues:
    """Values of whole distributions."""
    device, kept = log_softmax_NV.device, dict(read.kept)
    with torch.no_grad():
        top1_N = log_softmax_NV.argmax(-1) == targets_N
        if read.top is not None:
            kept["top"] = top_tokens(log_softmax_NV, targets_N, read.top)
    entropy_N = entropy(log_softmax_NV if read.entropy else log_softmax_NV.detach())
    divergence_N = None
    if read.teacher is not None:
        log_q_NV = read.teacher.block(slice(0, len(targets_N)), slice(None), device)
        divergence_N = token_divergence(log_softmax_NV, log_q_NV, read.teacher.kind, read.teacher.beta)
    return TokenValues(
        log_softmax_NV.gather(-1, targets_N[:, None])[:, 0],
        entropy_N,
        top1_N,
        {name: kept_and_rest(log_softmax_NV, ids_NK.to(device)) for name, ids_NK in kept.items()},
        divergence_N,
        kept.get("top"),
        log_softmax_NV.detach().cpu() if read.whole else None,
    )
