"""Attention trained by regression on tasks with infinite context, and its excess risk over the Bayes predictor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ral_system.studies.icl.attention import CrossAttention, LinearSelfAttention
from ral_system.studies.icl.factor_model import (
    Context,
    bayes_weights,
    best_step,
    draw_loadings,
    draw_views,
    infinite_context,
    one_layer_optimum,
    predict,
    strengths,
)
from ral_system.studies.icl.in_context_bayes import posterior_mean

Architecture = Callable[[int, torch.Generator], nn.Module]

ARCHITECTURES: dict[str, Architecture] = {
    "self": LinearSelfAttention,
    "cross": lambda depth, _: CrossAttention(depth),
    "within": lambda depth, _: CrossAttention(depth, within=True),
}


@dataclass(frozen=True, slots=True)
class Regression:
    """How much is trained and measured, for one seed."""

    depths: dict[str, tuple[int, ...]]
    """Numbers of layers of each architecture."""
    updates: int
    prompts: int
    """Tasks per update."""
    queries: int
    """Number of queries per task."""
    learning_rate: float
    """Adam's; falls linearly to 0."""
    test_prompts: int
    contexts: tuple[int, ...]
    """Numbers of examples with which the deepest model is compared with the Bayes predictor of the context."""


FULL = Regression(
    {"self": (1, 2, 4), "cross": (1, 2, 4, 8, 16), "within": (1, 4, 16)}, 150, 32, 16, 0.02, 2000, (16, 64, 256)
)
QUICK = Regression({"self": (1, 2), "cross": (1, 4), "within": (4,)}, 80, 32, 16, 0.03, 500, (16, 64))


@dataclass(frozen=True, slots=True)
class Measured:
    """What one seed gave. Excess risks are over the Bayes predictor that knows the task."""

    excess: dict[str, dict[int, float]]
    """Excess risk with infinite context, by architecture and depth."""
    learned: dict[int, tuple[float, float]]
    """alpha and beta of cross-attention, by depth."""
    one_layer: float
    """The least excess of one layer (`one_layer_optimum`) on the same test tasks."""
    best_step: dict[int, float]
    """Excess of cross-attention with the best alpha = -beta for the same test tasks (`best_step`), by depth."""
    by_context: dict[str, dict[int, float]]
    """Excess by predictor and number of examples: one layer, the deepest cross-attention, and the Bayes predictor of
    the context, which is optimal."""


def run(settings: Regression, seed: int) -> Measured:
    """Train every architecture at every depth, then measure them all on the same tasks."""
    held_out = torch.Generator().manual_seed(2 * seed + 1)
    tasks_BMD = draw_loadings(settings.test_prompts, held_out)
    trained: dict[str, dict[int, nn.Module]] = {}
    for name, depths in settings.depths.items():
        trained[name] = {depth: train(ARCHITECTURES[name], depth, settings, seed) for depth in depths}
    context, queries = infinite_context(tasks_BMD), draw_views(tasks_BMD, settings.queries, held_out).views
    excess: dict[str, dict[int, float]] = {name: {} for name in trained}
    learned = {}
    for name, of in trained.items():
        for depth, model in of.items():
            excess[name][depth] = excess_risk(model(context, queries).predictions, tasks_BMD, queries)
            if isinstance(model, CrossAttention) and not model.within:
                learned[depth] = (model.inject.item(), model.attend.item())
    deepest = max(settings.depths["cross"])
    models = {"one layer": trained["cross"][1], f"cross, {deepest} layers": trained["cross"][deepest]}
    by_context = _by_context(models, settings, held_out)
    strengths_B = strengths(tasks_BMD)
    in_closed_form = {depth: best_step(strengths_B, depth)[1] for depth in settings.depths["cross"]}
    return Measured(excess, learned, one_layer_optimum(strengths_B)[1], in_closed_form, by_context)


def train(architecture: Architecture, depth: int, settings: Regression, seed: int) -> nn.Module:
    """Minimise the mean squared error of the response with Adam, on new tasks in every update."""
    generator = torch.Generator().manual_seed(2 * seed)
    model = architecture(depth, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.updates)
    for _ in range(settings.updates):
        tasks_BMD = draw_loadings(settings.prompts, generator)
        queries = draw_views(tasks_BMD, settings.queries, generator)
        predictions = model(infinite_context(tasks_BMD), queries.views).predictions
        optimizer.zero_grad()
        (predictions - queries.responses).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.requires_grad_(False)


def excess_risk(predictions_BQ: Tensor, tasks_BMD: Tensor, queries_BMQD: Tensor) -> float:
    """Mean of (prediction - E[y | x, task])²: the risk above the Bayes predictor's, without the noise of responses."""
    return float((predictions_BQ - predict(bayes_weights(tasks_BMD), queries_BMQD)).square().mean())


def _by_context(
    models: dict[str, nn.Module], settings: Regression, generator: torch.Generator
) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {name: {} for name in (*models, "Bayes, given the context")}
    tasks_BMD = draw_loadings(settings.test_prompts // 10, generator)
    queries = draw_views(tasks_BMD, settings.queries // 2, generator).views
    for examples in settings.contexts:
        context: Context = draw_views(tasks_BMD, examples, generator)
        answers = {name: model(context, queries).predictions for name, model in models.items()}
        answers["Bayes, given the context"] = posterior_mean(context, queries)
        for name, predictions in answers.items():
            found[name][examples] = excess_risk(predictions, tasks_BMD, queries)
    return found
