"""The sharpening control in the objective of a micro-batch, against loops over dense policies."""

from dataclasses import replace

import pytest
import torch

from ral_system.attention.policy import attention_policy
from ral_system.types import Credit
from tests.unit.training.objectives import ADVANTAGES, PROMPTS, Case, objective


@pytest.mark.parametrize("signs", [(1, -1, -1), (1, 1, 1), (-1, -1, -1)], ids=["own", "absolute", "negative absolute"])
def test_value_and_gradient_are_those_of_loops(make_config, signs: tuple[int, ...]) -> None:
    """Its targets come from the records, of other queries and keys than the policy's; advantages are the controls'."""
    case = Case()
    config = make_config("algorithm=sharpening", "algorithm.attention.weight=3", "algorithm.attention.keys=all")
    of_attention = [abs(a) * sign for a, sign in zip(ADVANTAGES, signs, strict=True)]
    case.samples = tuple(replace(s, credit=Credit(a, (), ())) for s, a in zip(case.samples, of_attention, strict=True))
    heads = [tuple(t.clone().requires_grad_() for t in pair) for pair in case.heads]
    found = objective(case, config.algorithm, case.output(heads=heads))
    assert found.attention is not None
    slow_heads = [tuple(t.clone().requires_grad_() for t in pair) for pair in case.heads]
    total = torch.zeros(())
    for sample, a, sign, prompt, (query, key) in zip(case.samples, ADVANTAGES, signs, PROMPTS, slow_heads, strict=True):
        old = torch.from_numpy(case.behaviour[sample.id].attention[0].values)
        policy = attention_policy(query, key, torch.arange(prompt, sample.length), scale=0.7)
        for row, before in zip(policy, old, strict=True):
            raised = before ** (2.0 if sign > 0 else 0.5)
            q = raised / raised.sum()
            seen = q > 0
            total = total + abs(a) * (q[seen] * (q[seen].log() - row[seen].log())).sum() / 20
    assert found.attention.item() == pytest.approx(3 * total.item(), rel=1e-5)
    assert found.sums["attention/loss"].item() == pytest.approx(20 * total.item(), rel=1e-5)
    tensors = [t for pair in heads for t in pair]
    slow = [t for pair in slow_heads for t in pair]
    for one, other in zip(
        torch.autograd.grad(found.attention, tensors), torch.autograd.grad(3 * total, slow), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
