"""Every method composes with losses over sequences and over likely tokens, and with a teacher: one update of each."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator
from ral_system.config.commands import TrainConfig
from ral_system.media.store import MediaStore
from ral_system.scoring.build import build_policy
from ral_system.types import Credit, Sample
from tests.unit.training.learners import Start, Watched, equal, mismatched, plan, three_each

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = {
    "credit": (("algorithm=attention_credit",), "attention/loss"),
    "group_anchor": (("algorithm=group_anchor",), "attention/loss"),
    "evidence": (
        ("algorithm=ral", "algorithm/attention/objective=evidence", "algorithm.attention.keys=visual"),
        "attention/evidence_gate",
    ),
    "sharpening": (("algorithm=sharpening",), "attention/loss"),
    "papo": (("algorithm=papo",), "perception/loss"),
    "vppo": (("algorithm=vppo",), "perception/kl_kept"),
    "vgpo": (("algorithm=vgpo",), "perception/token_factor"),
}
"""Each method's options and a metric that GRPO lacks."""
BESIDE = {
    "gspo": (("algorithm/policy_loss=gspo",), "policy/loss"),
    "dppo_top_k_kl": (("algorithm/policy_loss=dppo_top_k_kl",), "policy/loss"),
    "a teacher": (
        ("algorithm/policy_loss=clip", "algorithm.distillation.tokens.weight=1", "teacher.path=/teacher"),
        "distillation/token_divergence",
    ),
}
CASES = [
    pytest.param(other, method, marks=pytest.mark.long if other == "a teacher" and method != "credit" else ())
    for other in BESIDE
    for method in METHODS
]
COMMON = ("algorithm.kl.coefficient=0", "rollout.log_prob_gate.token=9", "learner.learning_rate=0.01")
"""Rollout log-probs are off by up to one nat, as those of another policy."""
Update = tuple[dict[str, float], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def groups(tiny_model: Path, media: MediaStore, rl_samples: list[Sample], make_config: Callable) -> list[Sample]:
    """Two groups of three responses, one right, with the engine's likely tokens."""
    policy = build_policy(
        tiny_model, torch.device("cpu"), AttentionRead(), dtype="float32", temperature=make_config().rollout.temperature
    )
    outcomes = (0.9, -0.5, -0.4)
    credits = [Credit(a, outcomes, outcomes, reward=float(a > 0)) for a in outcomes]
    samples = [replace(s, credit=credits[s.index]) for s in three_each(rl_samples, 2)]
    return mismatched(policy, Collator(policy.family, media), samples)


@pytest.fixture(scope="module")
def updated(start_rank: Start, make_config: Callable[..., TrainConfig], groups: list[Sample]) -> Callable[..., Update]:
    """Metrics and gradients of the first update."""

    def update(*options: str) -> Update:
        watched, split = Watched(start_rank(make_config(*options, *COMMON))), plan(groups, 1, 6)
        scores = watched.rank.score(split)
        teaching = {s.id: replace(scores[s.id], tokens=s.rollout_top) for s in groups}
        taught = [teaching] if "teacher.path=/teacher" in options else []
        return watched.rank.update(split.updates[0], scores, None, *taught), watched.gradients[0]

    return update


@pytest.fixture(scope="module")
def beside(request: pytest.FixtureRequest, updated: Callable[..., Update]) -> tuple[tuple[str, ...], str, Update]:
    """Options, their metric, and the update with them and without a method."""
    options, metric = BESIDE[request.param]
    return options, metric, updated("algorithm=grpo", *options)


@pytest.mark.parametrize(("beside", "method"), CASES, indirect=["beside"])
def test_a_method_acts_beside_a_loss(
    method: str, beside: tuple[tuple[str, ...], str, Update], updated: Callable[..., Update]
) -> None:
    (chosen, own), (options, others, (without, plain)) = METHODS[method], beside
    metrics, gradients = updated(*chosen, *options)
    assert all(map(math.isfinite, metrics.values()))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert not equal(gradients, plain)
    assert {own, others} <= metrics.keys() and own not in without and others in without
    assert metrics[own] != 0 != metrics[others]
