"""The posterior mean over tasks, against quadrature over angles, importance sampling, and its limits."""

import numpy as np
import pytest
import torch

from ral_system.studies.icl import in_context_bayes
from ral_system.studies.icl.factor_model import (
    Context,
    bayes_weights,
    draw_loadings,
    draw_views,
    predict,
    strengths,
)
from ral_system.studies.icl.in_context_bayes import log_evidence, log_sphere_mean, posterior_mean


def test_the_mean_over_a_sphere_is_its_integral_over_the_angle() -> None:
    angle = np.linspace(0, np.pi, 20_001)
    density = np.sin(angle) ** 2  # of the angle to a direction, in four dimensions
    for kappa in (0.3, 2.0, 11.0):
        integral = np.trapezoid(density * np.exp(kappa * np.cos(angle)), angle) / np.trapezoid(density, angle)
        assert log_sphere_mean(torch.tensor(kappa, dtype=torch.float64)).item() == pytest.approx(np.log(integral), 1e-8)
    assert log_sphere_mean(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-7)
    assert torch.isfinite(log_sphere_mean(torch.tensor([1e5], dtype=torch.float64))).all()


def test_evidence_is_a_mean_over_loadings() -> None:
    loadings = draw_loadings(400_000, torch.Generator().manual_seed(0))[:, 0]
    sums, squares = torch.tensor([0.8, -0.4, 1.0, 0.2], dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)
    sampled = (loadings @ sums - loadings.square().sum(1) * squares / 2).exp().mean()
    found = log_evidence(sums.norm()[None], squares[None], 24).exp()
    assert found.item() == pytest.approx(sampled.item(), rel=5e-3)


def test_the_posterior_mean_is_that_of_importance_sampling() -> None:
    generator = torch.Generator().manual_seed(1)
    task = draw_loadings(1, generator)
    context, queries = draw_views(task, 3, generator), draw_views(task, 2, generator).views
    tasks = draw_loadings(200_000, generator)
    errors = context.views - context.responses[:, None, :, None] * tasks[:, :, None]
    log_context = -errors.square().sum((1, 2, 3)) / 2
    m, along = strengths(tasks)[:, None], torch.einsum("smd,mqd->sq", tasks, queries[0])
    log_query = along.square() / (1 + m) / 2 - torch.log1p(m) / 2  # of N(0, I + mu mu') against N(0, I)
    weights = (log_context[:, None] + log_query).softmax(0)
    sampled = (weights * predict(bayes_weights(tasks), queries.expand(len(tasks), -1, -1, -1))).sum(0)
    assert (1 / weights.square().sum(0)).min() > 5000  # so many samples count
    torch.testing.assert_close(posterior_mean(context, queries)[0], sampled, atol=0.01, rtol=0)


def test_without_examples_nothing_is_known() -> None:
    queries = draw_views(draw_loadings(2, torch.Generator().manual_seed(2)), 3, torch.Generator().manual_seed(2)).views
    nothing = Context(torch.zeros(2, 2, 0, 4, dtype=torch.float64), torch.zeros(2, 0, dtype=torch.float64))
    torch.testing.assert_close(posterior_mean(nothing, queries), torch.zeros(2, 3, dtype=torch.float64))


def test_with_many_examples_it_knows_the_task() -> None:
    generator = torch.Generator().manual_seed(3)
    tasks = draw_loadings(3, generator)
    queries, context = draw_views(tasks, 4, generator).views, draw_views(tasks, 20_000, generator)
    found, known = posterior_mean(context, queries), predict(bayes_weights(tasks), queries)
    torch.testing.assert_close(found, known, atol=0.05, rtol=0)


def test_there_are_as_many_nodes_as_the_examples_need(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(4)
    tasks = draw_loadings(20, generator)
    queries, context = draw_views(tasks, 4, generator).views, draw_views(tasks, 1024, generator)
    few = posterior_mean(context, queries)
    monkeypatch.setattr(in_context_bayes, "LATENTS", 150)
    monkeypatch.setattr(in_context_bayes, "strength_nodes", lambda _: 300)
    many = posterior_mean(context, queries)
    torch.testing.assert_close(few, many, atol=1e-5, rtol=0)
