"""Attention by policy gradient: what is right, exact gradients, the null and the controls."""

import random
from dataclasses import replace

import pytest
import torch

from ral_system.studies.icl.policy_gradient import (
    ALONE,
    ARMS,
    QUICK,
    Arm,
    Batch,
    attention_inputs,
    contrast_sums,
    log_density,
    losses,
    measure,
    roll_out,
    run,
)
from ral_system.studies.icl.retrieval import NOISE, Reader, World, rows

GENERATOR = torch.Generator().manual_seed(0)
WORLD, READER = World.draw(GENERATOR), Reader(GENERATOR)


def rolled(arm: Arm = ARMS["GRPO"], seed: int = 1, **schedule: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return roll_out(READER, WORLD, arm, replace(QUICK, **schedule), generator, random.Random(seed))


def right_reader() -> Reader:
    reader = Reader(GENERATOR)
    reader.maps_MDD.data = WORLD.rotations / torch.tensor(NOISE).square()[:, None, None]
    return reader


def test_the_right_attention_is_the_posterior_of_the_densities() -> None:
    prompts = WORLD.prompts(3, GENERATOR)
    for m, noise in enumerate(NOISE):
        seen = torch.einsum("de,bne->bnd", WORLD.rotations[m], prompts.codes)
        log_density_BN = torch.distributions.Normal(seen, noise).log_prob(prompts.views[:, m, None]).sum(-1)
        torch.testing.assert_close(WORLD.right_attention(prompts)[:, m], log_density_BN.softmax(-1))


def test_the_posterior_is_calibrated() -> None:
    """The query's example is where the posterior says, on average; a second draw of labels finds the example."""
    prompts = WORLD.prompts(20_000, GENERATOR)
    right = WORLD.right_attention(prompts)
    is_it = (prompts.responses == prompts.answers[:, None]).float()
    for m in range(2):
        gap = right[:, m] - is_it
        assert abs((gap * (right[:, m] > 0.5)).sum() / (right[:, m] > 0.5).sum()) < 0.015


def test_a_reader_with_the_right_maps_is_at_distance_zero_and_gets_the_best_reward() -> None:
    prompts = WORLD.prompts(4000, GENERATOR)
    reader = right_reader()
    torch.testing.assert_close(reader.attention(prompts), WORLD.right_attention(prompts))
    found = measure(reader, WORLD, prompts, 0.3)
    assert found["distance"] == pytest.approx(0, abs=1e-6) and found["plan"] == 0.5
    with torch.no_grad():
        reader.plan_M[0] = 40.0
        assert measure(reader, WORLD, prompts, 0.3)["reward"] == pytest.approx(found["best_reward"], abs=1e-5)
        for factor in (0.5, 2.0):  # neither flatter nor sharper attention does better
            reader.maps_MDD.mul_(factor)
            assert measure(reader, WORLD, prompts, 0.3)["reward"] < found["best_reward"] - 0.003
            reader.maps_MDD.div_(factor)


def test_a_row_by_hand() -> None:
    codes = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    found = rows(torch.tensor([[2.0, 1.0]]), codes)
    assert found[0, 0].item() == pytest.approx(1 / (1 + torch.e**-1))


def test_densities_differ_from_the_normal_distribution_by_a_constant() -> None:
    answers, means = torch.randn(2, 5, generator=GENERATOR)
    gap = torch.distributions.Normal(means, 0.3).log_prob(answers) - log_density(answers, means, 0.3)
    torch.testing.assert_close(gap, gap[:1].expand(5))


def test_the_token_gradient_is_the_gradient_of_the_expected_reward() -> None:
    """With rewards as advantages, over many responses: E[r] = Σ_m π_m (-(mean_m - y)² - spread²) is known exactly."""
    batch = rolled(prompts=1, responses=200_000)
    centred_rewards = batch.rewards - batch.rewards.mean()
    terms = losses(READER, WORLD, replace(batch, advantages=centred_rewards), torch.tensor([0]), Arm(), QUICK)
    found = torch.autograd.grad(-2 * terms.loss, list(READER.parameters()))  # a mean over two tokens
    means_M = (READER.attention(batch.prompts)[0] * batch.prompts.responses[0]).sum(-1)
    expected = READER.plan_M.softmax(0) @ -(means_M - batch.prompts.answers[0]).square()
    for sampled, exact in zip(found, torch.autograd.grad(expected, list(READER.parameters())), strict=True):
        assert exact.abs().max() > 0.01
        torch.testing.assert_close(sampled, exact, atol=0.04 * float(exact.abs().max()), rtol=0)


def test_ral_with_one_update_is_grpo_bit_for_bit() -> None:
    once = replace(QUICK, updates=1)
    grpo, ral = (run(ARMS[name], once, 3) for name in ("GRPO", "RAL"))
    assert ral == grpo and all(point.get("gradient_share", 0) == 0 for point in ral)
    assert run(ARMS["RAL"], QUICK, 3)[-1]["reward"] != run(ARMS["GRPO"], QUICK, 3)[-1]["reward"]


def test_objectives_are_held_at_their_share_of_the_gradient() -> None:
    for name in ("credit", "group anchor", "told"):
        assert run(ARMS[name], replace(QUICK, steps=5), 0)[-1]["gradient_share"] == pytest.approx(0.2, abs=0.03)


def test_a_permuted_arm_moves_rewards_within_groups_for_attention_alone() -> None:
    own, permuted = rolled(ALONE["group anchor"]), rolled(ALONE["group anchor, permuted"])
    assert permuted.judged == own.judged == own.outcomes
    torch.testing.assert_close(permuted.advantages, own.advantages)
    for was, now in zip(permuted.judged, permuted.outcomes, strict=True):
        assert sorted(now) == sorted(was)
    assert permuted.outcomes != permuted.judged
    for b, group in enumerate(permuted.judged):
        places = [group.index(outcome) for outcome in permuted.outcomes[b]]
        torch.testing.assert_close(permuted.attention_advantages[b], permuted.advantages[b][places])


def test_the_objectives_read_the_rows_of_their_own_response() -> None:
    batch = rolled(prompts=3, responses=4)
    chosen = torch.tensor([2, 0])
    rows_SN = batch.old_rows[chosen].flatten(0, 1)
    inputs = attention_inputs(WORLD, batch, chosen, rows_SN)
    assert [glances.index for glances in inputs.glances] == [0, 1, 2, 3] * 2
    assert inputs.glances[5].outcomes == batch.outcomes[0]
    torch.testing.assert_close(inputs.glances[5].group.float(), batch.old_rows[0])
    torch.testing.assert_close(inputs.glances[5].own, batch.old_rows[0, 1])
    assert not inputs.divergences.any()  # at the old weights
    torch.testing.assert_close(inputs.advantages, batch.advantages[chosen].flatten())
    assert inputs.evidence is not None
    right = WORLD.right_attention(batch.prompts)[0, batch.plans[0, 1]]
    told = (rows_SN[5] * (rows_SN[5] / right).log()).sum()
    torch.testing.assert_close(inputs.evidence.divergences[5, 0], told)


def test_kappa_is_high_where_one_modality_sees_better_and_1_on_average_over_orders() -> None:
    generator, reader = torch.Generator().manual_seed(0), right_reader()
    batch = roll_out(reader, WORLD, Arm(), replace(QUICK, prompts=64, responses=8), generator, random.Random(0))
    variance, shuffled = contrast_sums(batch).tolist()
    assert variance / shuffled > 1.5
    orders = [torch.randperm(8, generator=generator).tolist() for _ in range(30)]
    over_orders = [
        contrast_sums(replace(batch, judged=tuple(tuple(g[i] for i in o) for g in batch.judged))) for o in orders
    ]
    mean, expected = torch.stack(over_orders).mean(0).tolist()
    assert expected == pytest.approx(shuffled) and mean / expected == pytest.approx(1, abs=0.15)


def test_alone_the_objective_is_all_that_moves_attention() -> None:
    """RAL does not move it at all; credit moves it towards the right one, and with permuted rewards away from it."""
    start, *_, end = run(replace(ARMS["RAL"], alone=True), replace(QUICK, updates=4), 0)
    assert (end["clear"], end["noisy"]) == (start["clear"], start["noisy"]) and end["plan"] != start["plan"]
    schedule = replace(QUICK, steps=30, prompts=8, responses=8)
    start, *_, credit = run(ALONE["credit"], schedule, 0)
    control = run(ALONE["credit, permuted"], schedule, 0)[-1]
    assert credit["clear"] < start["clear"] - 0.1 < control["clear"]


def test_being_told_where_to_look_brings_attention_nearer_to_the_right_one() -> None:
    told, grpo = (run(ARMS[name], QUICK, 0)[-1] for name in ("told", "GRPO"))
    assert told["distance"] < grpo["distance"] - 0.02 and told["reward"] > grpo["reward"]
