"""What must not depend on how samples are batched."""

from collections.abc import Callable

import pytest
import torch

from ral_system.types import Sample
from tests.unit.training.learners import Start, Watched, plan, three_each

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("reduction", "grouped"), [("token_mean", False), ("sequence_mean", True)])
def test_micro_batches_change_neither_loss_nor_gradients_nor_weights(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, reduction: str, grouped: bool
) -> None:
    """With one response to each prompt, and with groups, which small micro-batches cut up."""
    samples = three_each(rl_samples) if grouped else rl_samples
    config = make_config(
        "algorithm.updates_per_step=2",
        "rollout.log_prob_gate.token=1e9",  # parts of responses have other log-probs
        "algorithm.attention.weight=5",
        "algorithm.attention.max_gradient_share=0.05",
        f"algorithm.attention.reduction={reduction}",
        "learner.learning_rate=1e-3",
        "learner.warmup_updates=0",
    )
    outcomes = []
    for micro_batch in (6, 3, 1):
        watched = Watched(start_rank(config))
        before = watched.weights()
        metrics = watched.train(plan(samples, 2, micro_batch))
        outcomes.append((metrics, watched.gradients, watched.weights()))
    metrics, gradients, after = outcomes[0]
    assert metrics[1]["attention/divergence_positive"] > 1e-6  # the attention loss took part in the second update
    assert 0 < metrics[1]["attention/gradient_factor"] < 1
    moved = torch.cat([(after[n] - before[n]).flatten() for n in after]).norm()
    for other_metrics, other_gradients, other_after in outcomes[1:]:
        for k in range(2):
            assert other_metrics[k] == pytest.approx(metrics[k], rel=1e-4, abs=5e-6)
            close = 1e-5 if k == 0 else 1e-4  # Adam turns rounding of near-zero gradients into steps
            assert other_metrics[k]["learner/grad_norm"] == pytest.approx(metrics[k]["learner/grad_norm"], rel=close)
            largest = max(g.abs().max().item() for g in gradients[k].values())
            for name, gradient in gradients[k].items():
                assert torch.allclose(other_gradients[k][name], gradient, rtol=1e-3, atol=1e-5 * largest), name
        apart = torch.cat([(after[n] - other_after[n]).flatten() for n in after]).norm()
        assert apart < 2e-3 * moved


def test_supervised_micro_batches_change_nothing(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    found = []
    for micro_batch in (12, 5, 1):
        watched = Watched(start_rank(make_config(), "sft"))
        metrics = watched.rank.fit(plan(rl_samples, 1, micro_batch).updates[0])
        found.append((metrics, watched.gradients[0]))
    for metrics, gradients in found[1:]:
        assert metrics == pytest.approx(found[0][0], rel=1e-5)
        largest = max(g.abs().max().item() for g in gradients.values())
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, found[0][1][name], rtol=1e-3, atol=1e-5 * largest), name


def test_gradient_checkpointing_changes_nothing(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    found = []
    for on in (False, True):
        config = make_config(
            f"learner.gradient_checkpointing={on}",
            "algorithm.attention.weight=5",
            "algorithm.attention.gradient_share_every=0",  # measuring runs the layer once more
            "learner.learning_rate=1e-3",
        )
        watched = Watched(start_rank(config))
        forwards: list[bool] = []
        layer = watched.rank._engine.policy.model.get_decoder().layers[-1]
        layer.self_attn.q_proj.register_forward_hook(lambda *_, seen=forwards: seen.append(torch.is_grad_enabled()))
        found.append((watched.train(plan(rl_samples, 2, 4)), watched.gradients, forwards))
    (metrics, gradients, once), (other_metrics, other_gradients, twice) = found
    assert sum(twice) == 2 * sum(once) > 0  # layers did run again in the backward pass
    assert other_metrics[0]["attention/divergence_positive"] == 0.0 < other_metrics[1]["attention/divergence_positive"]
    for k in range(2):
        assert other_metrics[k] == pytest.approx(metrics[k], rel=1e-5, abs=1e-6)
        for name, gradient in gradients[k].items():
            assert torch.allclose(other_gradients[k][name], gradient, rtol=1e-4, atol=1e-6), name
