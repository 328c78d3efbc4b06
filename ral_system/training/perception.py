"""The part of `algorithm.perception` in a micro-batch. Suffixes: B samples, R response positions (padded)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ral_system.algorithms.perception import MOST_DEPENDENCE, largest_share, papo, visual_dependence
from ral_system.config.perception import NoPerceptionConfig, PapoConfig, PerceptionGroup, VgpoConfig, VppoConfig
from ral_system.models.policy import PolicyOutput
from ral_system.training.stacking import stack_blinded_log_probs, stack_visual_similarity
from ral_system.types import Counts, MicroBatch, Scores


@dataclass(frozen=True, slots=True)
class Perception:
    """A term of the loss, and what the policy loss is told."""

    left_out: Tensor
    """bool [B, R]: tokens without a part in the policy loss, whose denominators stay."""
    factors: Tensor | None = None
    """[B, R], on the advantages; None: 1."""
    loss: Tensor | None = None
    """Scalar, differentiable; None without a term."""
    weighted: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)
    """Metrics, as in `Objective`."""


def perception(
    output: PolicyOutput,
    samples: MicroBatch,
    behaviour: Scores,
    old_BR: Tensor,
    mask_BR: Tensor,
    counts: Counts,
    settings: PerceptionGroup,
) -> Perception:
    """Compare the policy, or for VPPO the old policy, with its blinded view at the rollout's weights; for VGPO take
    what was found of the old policy's hidden states.

    Samples without media have neither: nothing changes for them.
    """
    none_BR = torch.zeros_like(mask_BR)
    if isinstance(settings, NoPerceptionConfig):
        return Perception(none_BR)
    if isinstance(settings, VgpoConfig):
        return _vgpo(samples, behaviour, mask_BR)
    blinded_BR, seen_BR = stack_blinded_log_probs(samples, behaviour, mask_BR)
    if isinstance(settings, PapoConfig):
        dependence_BR = visual_dependence(output.log_probs, blinded_BR)
        loss = papo(output.log_probs, output.entropy, dependence_BR, seen_BR, settings, counts.tokens)
        return Perception(none_BR, None, loss, _metrics(dependence_BR, seen_BR))
    assert isinstance(settings, VppoConfig)
    dependence_BR = visual_dependence(old_BR, blinded_BR)
    kept_BR = largest_share(dependence_BR, seen_BR, settings.kept_tokens)
    factors_B = _advantage_factors(samples, behaviour, mask_BR)
    weighted = _metrics(dependence_BR, seen_BR) | {"perception/kl_kept": _mean(dependence_BR, kept_BR)}
    return Perception(seen_BR & ~kept_BR, factors_B[:, None].expand(mask_BR.shape), None, weighted, _largest(factors_B))


def _vgpo(samples: MicroBatch, behaviour: Scores, mask_BR: Tensor) -> Perception:
    factors_B = _advantage_factors(samples, behaviour, mask_BR)
    similarity_BR, of_tokens_BR, seen_BR = stack_visual_similarity(samples, behaviour, mask_BR)
    factors_BR = factors_B[:, None] * of_tokens_BR
    weighted = {
        "perception/similarity": _mean(similarity_BR, seen_BR),
        "perception/token_factor": _mean(factors_BR, seen_BR),
    }
    return Perception(torch.zeros_like(mask_BR), factors_BR, None, weighted, _largest(factors_B))


def _advantage_factors(samples: MicroBatch, behaviour: Scores, mask_BR: Tensor) -> Tensor:
    return torch.tensor([behaviour[s.id].advantage_factor for s in samples], device=mask_BR.device)


def _largest(factors_B: Tensor) -> dict[str, Tensor]:
    return {"perception/advantage_factor_max": factors_B.max()}


def _metrics(dependence_BR: Tensor, seen_BR: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        "perception/kl": _mean(dependence_BR, seen_BR),
        "perception/clamped": _mean((dependence_BR >= MOST_DEPENDENCE).float(), seen_BR),
    }


def _mean(values_BR: Tensor, mask_BR: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(mask_BR, values_BR.detach(), 0.0).sum(), mask_BR.sum().float()
