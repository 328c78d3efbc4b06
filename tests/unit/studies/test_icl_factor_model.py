"""The factor model's closed forms, against explicit covariances, posteriors and samples."""

import math

import pytest
import torch

from ral_system.studies.icl.attention import CrossAttention, LinearSelfAttention
from ral_system.studies.icl.factor_model import (
    FEATURES,
    LEAST,
    MODALITIES,
    MOST,
    WIDTH,
    bayes_risk,
    bayes_weights,
    best_step,
    depth_excess,
    draw_loadings,
    draw_views,
    infinite_context,
    minimax_step,
    one_layer_optimum,
    predict,
    strengths,
)

TASKS = draw_loadings(5, torch.Generator().manual_seed(0))


def covariance(loadings_BMD: torch.Tensor) -> torch.Tensor:
    mu = loadings_BMD.flatten(1)
    return torch.eye(FEATURES, dtype=torch.float64) + mu[:, :, None] * mu[:, None, :]


def linear_weights(model: torch.nn.Module, loadings_BMD: torch.Tensor) -> torch.Tensor:
    """Compute a model's output for each unit vector, with infinite context: [B, P]."""
    units = torch.eye(FEATURES, dtype=torch.float64).view(FEATURES, MODALITIES, WIDTH).transpose(0, 1)
    return model(infinite_context(loadings_BMD), units.expand(len(loadings_BMD), -1, -1, -1)).predictions.detach()


def exact_excess(weights_BP: torch.Tensor, loadings_BMD: torch.Tensor) -> torch.Tensor:
    gap = weights_BP - bayes_weights(loadings_BMD).flatten(1)
    return torch.einsum("bp,bpq,bq->b", gap, covariance(loadings_BMD), gap)


def test_loadings_have_the_strengths_they_should() -> None:
    squares = draw_loadings(4000, torch.Generator().manual_seed(1)).square().sum(-1)
    assert squares.min() >= LEAST and squares.max() <= MOST
    assert squares.mean(0) == pytest.approx((LEAST + MOST) / 2, abs=0.06)


def test_an_infinite_context_has_exactly_the_covariances_of_its_task() -> None:
    context = infinite_context(TASKS)
    views = context.views.transpose(1, 2).flatten(2)
    n = views.shape[1]
    torch.testing.assert_close(views.transpose(1, 2) @ views / n, covariance(TASKS), atol=1e-12, rtol=0)
    products = (views * context.responses[..., None]).sum(1) / n
    torch.testing.assert_close(products, TASKS.flatten(1), atol=1e-12, rtol=0)
    torch.testing.assert_close(context.responses.square().mean(1), torch.ones(5, dtype=torch.float64))


def test_a_sampled_context_tends_to_them() -> None:
    context = draw_views(TASKS[:1], 200_000, torch.Generator().manual_seed(2))
    views = context.views.transpose(1, 2).flatten(2)[0]
    torch.testing.assert_close(views.T @ views / len(views), covariance(TASKS)[0], atol=0.06, rtol=0)
    torch.testing.assert_close(views.T @ context.responses[0] / len(views), TASKS[0].flatten(), atol=0.03, rtol=0)


def test_the_bayes_weights_solve_the_normal_equations() -> None:
    solved = torch.linalg.solve(covariance(TASKS), TASKS.flatten(1))
    torch.testing.assert_close(bayes_weights(TASKS).flatten(1), solved)


def test_the_bayes_predictor_is_the_posterior_mean_of_the_latent() -> None:
    views = draw_views(TASKS[:1], 1, torch.Generator().manual_seed(3)).views
    z = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    squares = (views[0, :, 0, :, None] - TASKS[0, :, :, None] * z).square().sum((0, 1))
    posterior = (-squares / 2 - z.square() / 2).softmax(0)
    mean = (posterior * z).sum()
    assert predict(bayes_weights(TASKS[:1]), views).item() == pytest.approx(mean.item(), abs=1e-9)
    variance = (posterior * (z - mean).square()).sum()
    assert bayes_risk(strengths(TASKS[:1])).item() == pytest.approx(variance.item(), abs=1e-9)


def test_one_layer_at_its_best_by_hand() -> None:
    gain, excess = one_layer_optimum(torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert gain == pytest.approx(2 / 7)  # E m = 2, E m (1 + m) = 7
    assert excess == pytest.approx(0.625 - 4 / 7)  # E m / (1 + m) = 5 / 8
    assert one_layer_optimum(torch.full((3,), 2.0))[1] == pytest.approx(0, abs=1e-7)


def test_no_matrix_of_one_layer_does_better_than_its_optimum() -> None:
    """The best Γ of all 64 numbers, by least squares over many tasks, whose excess is below only by their sampling."""
    tasks = draw_loadings(4000, torch.Generator().manual_seed(4))
    mu, roots = tasks.flatten(1), torch.linalg.cholesky(covariance(tasks)).transpose(1, 2)
    design = torch.einsum("bij,bk->bijk", roots, mu).reshape(-1, FEATURES**2)  # of root' Γ mu in the entries of Γ
    aim = torch.einsum("bij,bj->bi", roots, bayes_weights(tasks).flatten(1)).reshape(-1)
    matrix = torch.linalg.lstsq(design, aim[:, None]).solution
    found = float((design @ matrix - aim[:, None]).square().sum() / len(tasks))
    gain, optimum = one_layer_optimum(strengths(tasks))
    assert optimum - 0.002 < found <= optimum
    torch.testing.assert_close(
        matrix.view(FEATURES, FEATURES), gain * torch.eye(FEATURES, dtype=torch.float64), atol=0.03, rtol=0
    )


def test_the_excess_of_depth_by_hand() -> None:
    assert depth_excess(torch.tensor([1.0]), 0.25, 2).item() == pytest.approx(0.5**4 * 0.5)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_cross_attention_has_the_excess_of_its_depth(depth: int) -> None:
    model = CrossAttention(depth)
    with torch.no_grad():
        model.inject.fill_(0.17)
        model.attend.fill_(-0.17)
    found = exact_excess(linear_weights(model, TASKS), TASKS)
    torch.testing.assert_close(found, depth_excess(strengths(TASKS), 0.17, depth), atol=1e-13, rtol=1e-9)


def test_the_minimax_step_treats_the_extremes_alike_and_no_step_does_better() -> None:
    ends = torch.tensor([2 * LEAST, 2 * MOST], dtype=torch.float64)
    step = minimax_step(*ends.tolist())
    errors = (1 - step * (1 + ends)).abs()
    assert errors[0].item() == pytest.approx(errors[1].item())
    others = torch.linspace(0.01, 0.4, 400, dtype=torch.float64)[:, None]
    assert (1 - others * (1 + ends)).abs().amax(1).min() >= errors[0] - 1e-12


def test_the_best_step_is_the_optimum_of_one_layer_and_tends_to_minimax() -> None:
    m = strengths(draw_loadings(500, torch.Generator().manual_seed(5)))
    step, excess = best_step(m, 1)
    gain, optimum = one_layer_optimum(m)
    assert step == pytest.approx(gain, abs=3e-4) and excess == pytest.approx(optimum, abs=1e-6)
    deep = minimax_step(float(m.min()), float(m.max()))
    assert abs(best_step(m, 200)[0] - deep) < 0.005 < abs(step - deep)


def test_one_layer_of_either_kind_is_the_same_function() -> None:
    cross, own = CrossAttention(1), LinearSelfAttention(1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        cross.inject.fill_(0.2)
        own.values_LEE.zero_()
        own.values_LEE[0, -1, -1] = 0.2
        own.scores_LEE[0] = torch.diag(torch.tensor([1.0] * FEATURES + [0.0]))
    torch.testing.assert_close(linear_weights(cross, TASKS), linear_weights(own, TASKS))


def test_each_modality_by_itself_inverts_the_diagonal_blocks() -> None:
    """In the limit of depth it weighs a by 1 / (1 + |a|²), where the other modality should count."""
    model = CrossAttention(400, within=True)
    with torch.no_grad():
        model.inject.fill_(0.2)
        model.attend.fill_(-0.2)
    alone = TASKS / (1 + TASKS.square().sum(-1, keepdim=True))
    torch.testing.assert_close(linear_weights(model, TASKS), alone.flatten(1), atol=1e-9, rtol=0)
    assert math.isfinite(float(exact_excess(alone.flatten(1), TASKS).mean()))
    assert exact_excess(alone.flatten(1), TASKS).min() > 0.01
