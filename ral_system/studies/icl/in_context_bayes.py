"""The best predictor from a finite context: the posterior mean over tasks, by quadrature. `factor_model` has suffixes.

Given a task, log p(x | z) = -|x - mu z|² / 2 + const. The examples' z are known: they are the responses. So the part of
modality 1 that depends on the task is exp(a'c - |a|² s / 2), where c = Σ_i y_i x1_i + z x1 and s = Σ_i y_i² + z²
include a query with latent z. The mean of exp(a'c) over the directions of a with |a|² = A is, in four dimensions,
2 I_1(κ) / κ with κ = √A |c|. What is left are one integral over A for each modality and one over z.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ral_system.studies.icl.factor_model import LEAST, MOST, WIDTH, Context

LATENTS = 64
"""Nodes over z (Gauss-Hermite)."""


def posterior_mean(context: Context, queries_BMQD: Tensor) -> Tensor:
    """E[y | x, context], the mean of the query's latent over all tasks and its own noise: float64 [B, Q].

    Quadrature errors are below 1e-5.
    """
    nodes_over_strengths = strength_nodes(context.views.shape[2])
    nodes, weights = np.polynomial.hermite_e.hermegauss(LATENTS)
    z_K = torch.from_numpy(nodes)
    log_prior_K = torch.from_numpy(np.log(weights))
    squares_BK = context.responses.square().sum(1, keepdim=True) + z_K.square()
    sums_BMD = torch.einsum("bn,bmnd->bmd", context.responses, context.views)
    log_posterior_BQK = log_prior_K
    for modality in range(context.views.shape[1]):
        lengths_BQK = (sums_BMD[:, modality, None, None] + z_K[:, None] * queries_BMQD[:, modality, :, None]).norm(
            dim=-1
        )
        log_posterior_BQK = log_posterior_BQK + log_evidence(lengths_BQK, squares_BK[:, None], nodes_over_strengths)
    return (log_posterior_BQK.softmax(-1) * z_K).sum(-1)


def strength_nodes(examples: int) -> int:
    """Return how many nodes the integral over |a|² needs: its posterior narrows with the root of `examples`."""
    return max(24, math.ceil(3 * math.sqrt(examples)))


def log_evidence(lengths: Tensor, squares: Tensor, nodes_over_strengths: int) -> Tensor:
    """ln E_a[exp(a'c - |a|² s / 2)] over the loadings of one modality, for |c| and s of one shape.

    The integral over |a|² is Gauss and Legendre's.
    """
    nodes, weights = np.polynomial.legendre.leggauss(nodes_over_strengths)
    strengths_J = torch.from_numpy((LEAST + MOST) / 2 + (MOST - LEAST) / 2 * nodes)
    concentrations = strengths_J.sqrt() * lengths[..., None]
    terms = log_sphere_mean(concentrations) - strengths_J * squares[..., None] / 2
    return (terms + torch.from_numpy(np.log(weights / 2))).logsumexp(-1)


def log_sphere_mean(concentrations: Tensor) -> Tensor:
    """ln E[exp(κ u'v)] over directions u in `WIDTH` = 4 dimensions: ln(2 I_1(κ) / κ), 0 at κ = 0."""
    assert WIDTH == 4, "the closed form is that of four dimensions"
    kappa = concentrations.clamp(min=1e-8)
    return kappa + torch.log(2 * torch.special.i1e(kappa) / kappa)
