"""Linear attention against loops over tokens, values, weights and gradients."""

import pytest
import torch

from ral_system.studies.icl.attention import CrossAttention, LinearSelfAttention
from ral_system.studies.icl.factor_model import Context, draw_loadings, draw_views

GENERATOR = torch.Generator().manual_seed(0)
TASKS = draw_loadings(2, GENERATOR)
CONTEXT = draw_views(TASKS, 5, GENERATOR)
QUERIES = draw_views(TASKS, 3, GENERATOR).views


def slow_self(model: LinearSelfAttention, context: Context, queries: torch.Tensor, b: int, q: int) -> torch.Tensor:
    n = context.responses.shape[1]
    examples = [torch.cat([*context.views[b, :, i], context.responses[b, i : i + 1]]) for i in range(n)]
    query = torch.cat([*queries[b, :, q], torch.zeros(1, dtype=torch.float64)])
    for values, scores in zip(model.values_LEE, model.scores_LEE, strict=True):
        tokens = [query, *examples]
        read = [sum(values @ e * (e @ scores @ token) for e in examples) / n for token in tokens]
        query, *examples = [token + of_token for token, of_token in zip(tokens, read, strict=True)]
    return query[-1]


def slow_cross(model: CrossAttention, context: Context, queries: torch.Tensor, b: int, q: int) -> torch.Tensor:
    views, n = context.views[b], context.responses.shape[1]
    states = [torch.zeros(4, dtype=torch.float64) for _ in range(2)]
    for _ in range(model.depth):
        scores = [[views[m, i] @ states[m] / n for i in range(n)] for m in range(2)]
        both = [scores[0][i] + scores[1][i] for i in range(n)]
        read = [
            torch.stack([(scores[m] if model.within else both)[i] * views[m, i] for i in range(n)]).sum(0)
            for m in range(2)
        ]
        states = [states[m] + model.inject * queries[b, m, q] + model.attend * read[m] for m in range(2)]
    votes = [context.responses[b, i] * sum(views[m, i] @ states[m] for m in range(2)) for i in range(n)]
    return torch.stack(votes).sum() / n


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_self_attention_is_its_loop(depth: int) -> None:
    model = LinearSelfAttention(depth, torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.values_LEE.add_(0.1)
        model.scores_LEE.sub_(0.05)  # no entry is small by accident
    check(model, slow_self)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_cross_attention_is_its_loop(depth: int, within: bool) -> None:
    check(CrossAttention(depth, within=within), slow_cross)


def check(model, slow) -> None:
    predictions = model(CONTEXT, QUERIES).predictions
    expected = torch.stack([torch.stack([slow(model, CONTEXT, QUERIES, b, q) for q in range(3)]) for b in range(2)])
    torch.testing.assert_close(predictions, expected)
    upstream = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.7, -1.0]], dtype=torch.float64)
    parameters = list(model.parameters())
    for fast, naive in zip(
        torch.autograd.grad(predictions, parameters, upstream, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(expected, parameters, upstream, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(fast, naive)


def test_weights_say_where_a_layer_looks() -> None:
    """Cross-attention's second layer has x_i' h of both modalities, over N; by itself, each has its own."""
    for within in (False, True):
        model = CrossAttention(2, within=within)
        weights = model(CONTEXT, QUERIES).weights
        assert weights.shape == (2, 2, 2, 3, 5) and not weights[0].any()  # the state is 0 before the first layer
        own = 0.1 * torch.einsum("bmqd,bmnd->bmqn", QUERIES, CONTEXT.views) / 5
        expected = own if within else own.sum(1, keepdim=True).expand_as(own)
        torch.testing.assert_close(weights[1], expected)
    model = LinearSelfAttention(1, torch.Generator().manual_seed(2))
    weights = model(CONTEXT, QUERIES).weights
    token, query = torch.cat([*CONTEXT.views[1, :, 4], CONTEXT.responses[1, 4:]]), torch.cat([*QUERIES[1, :, 2]])
    assert weights.shape == (1, 2, 3, 5)
    torch.testing.assert_close(weights[0, 1, 2, 4], (token @ model.scores_LEE[0])[:-1] @ query / 5)
