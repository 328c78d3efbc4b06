"""Regression by softmax attention over a prompt's examples, where the right attention is a posterior in closed form.

A prompt has N examples with codes z_i, uniform on a sphere, and responses y_i ~ N(0, 1). Its query is a second
observation of one of them, in two modalities: x_m = R_m z_i + sigma_m e, with rotations R_m that belong to the world.
All codes have the same length, so what one modality says about which example it is, is a softmax of bilinear scores:

    P(i | x_m) ∝ exp(x_m' R_m z_i / sigma_m²)

Suffixes: B prompts, M modalities, N examples, D features, S responses of a model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

EXAMPLES, WIDTH, RADIUS = 8, 4, 2.0
NOISE = (0.5, 1.5)
"""sigma of each modality: the first says much, the second little."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Independent prompts of one world."""

    codes: Tensor
    """[B, N, D]."""
    responses: Tensor
    """[B, N], of the examples."""
    views: Tensor
    """[B, M, D], of the query."""
    answers: Tensor
    """[B], the response of the query's example."""


@dataclass(frozen=True, slots=True)
class World:
    """How codes look in each modality."""

    rotations: Tensor
    """[M, D, D]."""

    @classmethod
    def draw(cls, generator: torch.Generator) -> World:
        """Draw an orthogonal matrix for each modality."""
        return cls(torch.linalg.qr(torch.randn(len(NOISE), WIDTH, WIDTH, generator=generator)).Q)

    def prompts(self, count: int, generator: torch.Generator) -> Prompts:
        """Draw prompts."""
        codes = torch.randn(count, EXAMPLES, WIDTH, generator=generator)
        codes = RADIUS * codes / codes.norm(dim=-1, keepdim=True)
        responses = torch.randn(count, EXAMPLES, generator=generator)
        which, of = torch.randint(EXAMPLES, (count,), generator=generator), torch.arange(count)
        noise = torch.tensor(NOISE)[:, None] * torch.randn(count, len(NOISE), WIDTH, generator=generator)
        views = torch.einsum("mde,be->bmd", self.rotations, codes[of, which]) + noise
        return Prompts(codes, responses, views, responses[of, which])

    def right_attention(self, prompts: Prompts) -> Tensor:
        """P(i | x_m), which predicts the response with the least squared error that modality m allows: [B, M, N]."""
        maps = self.rotations / torch.tensor(NOISE).square()[:, None, None]
        return torch.einsum("bmd,mde,bne->bmn", prompts.views, maps, prompts.codes).softmax(-1)


class Reader(nn.Module):
    """A policy whose response has two tokens: which modality to look with, and the answer.

    The first is drawn from softmax(plan). The answer's row attends to the examples with softmax(x_m' W_m z_i), where m
    is the first token; the answer is drawn from N(Σ_i p_i y_i, spread²). W_m = R_m / sigma_m² is right.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.maps_MDD = nn.Parameter(0.1 * torch.randn(len(NOISE), WIDTH, WIDTH, generator=generator))
        self.plan_M = nn.Parameter(torch.zeros(len(NOISE)))

    def queries(self, views_SD: Tensor, plans_S: Tensor) -> Tensor:
        """x' W of each answer's row: [S, D]."""
        return torch.einsum("sd,sde->se", views_SD, self.maps_MDD[plans_S])

    def attention(self, prompts: Prompts) -> Tensor:
        """Rows of both plans for every prompt: [B, M, N]."""
        return torch.einsum("bmd,mde,bne->bmn", prompts.views, self.maps_MDD, prompts.codes).softmax(-1)


def rows(queries_SD: Tensor, codes_SND: Tensor) -> Tensor:
    """softmax of the scores over the examples: [S, N]."""
    return torch.einsum("sd,snd->sn", queries_SD, codes_SND).softmax(-1)
