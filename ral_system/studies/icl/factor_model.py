"""A latent factor seen in two modalities: the tasks, their prompts, and what is known of them in closed form.

A task has loadings a and b. Every example has a latent z ~ N(0, 1), its views x1 = a z + e1 and x2 = b z + e2 with
e ~ N(0, I), and the response y = z. With mu = (a, b) and strength m = |mu|², the views have the covariance
I + mu mu', which differs between tasks, and the covariance mu with the response.

Suffixes: B prompts (a task each), M modalities, D features of a modality, P = M D, N examples, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MODALITIES, WIDTH = 2, 4
FEATURES = MODALITIES * WIDTH
LEAST, MOST = 0.25, 4.0
"""Range of |a|² and of |b|²; both are uniform, and the directions of a and b are."""


@dataclass(frozen=True, slots=True)
class Context:
    """Examples of one task per prompt."""

    views: Tensor
    """[B, M, N, D]."""
    responses: Tensor
    """[B, N]."""


def draw_loadings(prompts: int, generator: torch.Generator) -> Tensor:
    """Draw the loadings of independent tasks: float64 [B, M, D]."""
    directions = torch.randn(prompts, MODALITIES, WIDTH, generator=generator, dtype=torch.float64)
    uniform = torch.rand(prompts, MODALITIES, 1, generator=generator, dtype=torch.float64)
    lengths = (LEAST + (MOST - LEAST) * uniform).sqrt()
    return lengths * directions / directions.norm(dim=-1, keepdim=True)


def strengths(loadings_BMD: Tensor) -> Tensor:
    """m = |a|² + |b|²: [B]."""
    return loadings_BMD.square().sum((1, 2))


def draw_views(loadings_BMD: Tensor, examples: int, generator: torch.Generator) -> Context:
    """Draw independent examples of every task. Queries are drawn in the same way."""
    prompts = len(loadings_BMD)
    latents_BN = torch.randn(prompts, examples, generator=generator, dtype=loadings_BMD.dtype)
    noise = torch.randn(prompts, MODALITIES, examples, WIDTH, generator=generator, dtype=loadings_BMD.dtype)
    return Context(latents_BN[:, None, :, None] * loadings_BMD[:, :, None] + noise, latents_BN)


def infinite_context(loadings_BMD: Tensor) -> Context:
    """P + 1 examples whose mean products (1/N) Σ x x', (1/N) Σ x y and (1/N) Σ y² are exactly the task's covariances.

    Linear attention reads its context through these alone, so this is the limit of many examples, without noise. The
    examples are √N times the columns of a factor of the joint covariance.
    """
    mu_BP = loadings_BMD.flatten(1)
    mu_BP1 = torch.cat([mu_BP, torch.ones_like(mu_BP[:, :1])], 1)
    noise = torch.ones(FEATURES + 1, dtype=mu_BP.dtype)
    noise[-1] = 0.0  # the response is the latent itself
    # Cov = diag(noise) + mu mu' = F F', with mu as the first column of F and the noise in the others.
    factor = torch.cat([mu_BP1[:, :, None], torch.diag(noise)[:, :-1].expand(len(mu_BP), -1, -1)], 2)
    examples_BNE = (FEATURES + 1) ** 0.5 * factor.transpose(1, 2)
    views = examples_BNE[..., :-1].unflatten(2, (MODALITIES, WIDTH)).transpose(1, 2)
    return Context(views, examples_BNE[..., -1])


def bayes_weights(loadings_BMD: Tensor) -> Tensor:
    """Weights of the best predictor of y from x, for who knows the task: mu / (1 + m), [B, M, D].

    It is E[y | x] = Cov(y, x) Cov(x)⁻¹ x, by Sherman and Morrison; its risk is `bayes_risk`.
    """
    return loadings_BMD / (1 + strengths(loadings_BMD))[:, None, None]


def bayes_risk(strengths_B: Tensor) -> Tensor:
    """Var(y | x) = 1 / (1 + m) of each task."""
    return 1 / (1 + strengths_B)


def predict(weights_BMD: Tensor, views_BMQD: Tensor) -> Tensor:
    """Predict linearly, with weights of each task: [B, Q]."""
    return torch.einsum("bmd,bmqd->bq", weights_BMD, views_BMQD)


def one_layer_optimum(strengths_B: Tensor) -> tuple[float, float]:
    """The best that one layer of linear self-attention can do with infinite context: its gain and its excess risk.

    One layer predicts x' Γ (1/N) Σ x y → x' Γ mu, with one Γ for all tasks; its other terms are even where E[y | x] is
    odd in mu. The excess is convex in Γ and the tasks are isotropic in each modality and exchangeable between the two,
    so the best Γ is gamma I. That leaves E[(gamma (1 + m) - 1)² m / (1 + m)], least at gamma = E[m] / E[m (1 + m)]. It
    is 0 only if all tasks have the same strength.
    """
    m, whole = strengths_B, strengths_B * (1 + strengths_B)
    gain = m.mean() / whole.mean()
    return float(gain), float((m / (1 + m)).mean() - gain * m.mean())


def minimax_step(least: float, most: float) -> float:
    """alpha = 2 / (2 + least + most), which makes the slowest task's error fall fastest, for m in [least, most]."""
    return 2 / (2 + least + most)


def depth_excess(strengths_B: Tensor, step: float, depth: int) -> Tensor:
    """Excess risk of `depth` layers of cross-attention with alpha = -beta = `step` and infinite context: [B].

    The layers are Richardson's iteration for Cov(x)⁻¹ x. Of mu, an eigenvector with the value 1 + m, the part
    (1 - alpha (1 + m))^depth is missing: the excess is its square times m / (1 + m). It falls by a constant factor with
    every layer.
    """
    m = strengths_B
    return (1 - step * (1 + m)).pow(2 * depth) * m / (1 + m)


def best_step(strengths_B: Tensor, depth: int) -> tuple[float, float]:
    """The step with the least mean of `depth_excess` over tasks, of 1,000 up to 2 / (1 + max m), and that mean.

    Beyond the grid the strongest task diverges with depth. As the depth grows, the slowest tasks decide, and the step
    tends to `minimax_step`.
    """
    steps = torch.linspace(0, 2 / (1 + float(strengths_B.max())), 1001, dtype=torch.float64)[1:]
    means = torch.stack([depth_excess(strengths_B, float(step), depth).mean() for step in steps])
    best = int(means.argmin())
    return float(steps[best]), float(means[best])
