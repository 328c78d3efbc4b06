"""Every method composes with losses over sequences and over likely tokens, and with a teacher: one update of each."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator
from ral_system.config.commands import TrainConfig
from ral_system.media.store import MediaStore
from ral_system.scoring.build import build_policy
from ral_system.types import Credit, Sample
from tests.unit.training.learners import Start, Watched, mismatched, plan, three_each

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
ADDING = ("credit", "group_anchor", "evidence", "sharpening", "papo")
"""Methods with a term of their own; the others change the policy loss."""
CLIP = ("algorithm/policy_loss=clip",)
"""The default loss."""
BESIDE = {
    "gspo": (("algorithm/policy_loss=gspo",), "policy/loss"),
    "dppo_top_k_kl": (("algorithm/policy_loss=dppo_top_k_kl",), "policy/loss"),
    "a teacher": (
        (*CLIP, "algorithm.distillation.tokens.weight=1", "teacher.path=/teacher"),
        "distillation/token_divergence",
    ),
}
CASES = [
    pytest.param(other, method, marks=pytest.mark.long if other == "a teacher" and method != "credit" else ())
    for other in BESIDE
    for method in METHODS
]
COMMON = (
    *("algorithm.kl.coefficient=0", "rollout.log_prob_gate.token=9", "learner.learning_rate=0.01"),
    *("algorithm.reduction=token_mean", "algorithm.correction.kind=none"),
)
"""Rollout log-probs are off by up to one nat, as those of another policy. Only the losses themselves differ."""
Gradients = dict[str, torch.Tensor]
Update = tuple[dict[str, float], Gradients]


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
    """Metrics and gradients of an update whose policy has moved: old log-probs differ by up to 0.3 nats."""

    @cache
    def update(*options: str) -> Update:
        watched, split = Watched(start_rank(make_config(*options, *COMMON))), plan(groups, 1, 6)
        scores, noise = watched.rank.score(split), np.random.default_rng(1)
        for sample in groups:
            found = scores[sample.id]
            off = noise.uniform(-0.3, 0.3, found.log_probs.shape).astype(np.float32)
            scores[sample.id] = replace(found, log_probs=found.log_probs + off)
        teaching = {s.id: replace(scores[s.id], tokens=s.rollout_top) for s in groups}
        taught = [teaching] if "teacher.path=/teacher" in options else []
        return watched.rank.update(split.updates[0], scores, None, *taught), watched.gradients[0]

    return update


def change(after: Gradients, before: Gradients) -> torch.Tensor:
    """All parameters' differences in one vector, float64."""
    assert after.keys() == before.keys()
    return torch.cat([(after[name].double() - before[name].double()).flatten() for name in after])


def norm(gradients: Gradients) -> float:
    return math.hypot(*(gradient.norm().item() for gradient in gradients.values()))


@pytest.mark.parametrize(("other", "method"), CASES)
def test_a_method_acts_beside_a_loss(method: str, other: str, updated: Callable[..., Update]) -> None:
    """Both act: the gradient is neither that of the loss alone nor that of the method beside the default loss.

    A term of its own adds the same gradient beside every loss, but for rounding in float32 (at most 1.6e-5 was seen). A
    method that changes which tokens the policy loss heeds, and by how much, adds another one beside another loss.
    """
    (chosen, own), (options, others) = METHODS[method], BESIDE[other]
    (without, alone), (metrics, both) = updated("algorithm=grpo", *options), updated(*chosen, *options)
    (_, plain), (_, default) = updated("algorithm=grpo", *CLIP), updated(*chosen, *CLIP)
    assert all(map(math.isfinite, metrics.values()))
    assert {own, others} <= metrics.keys() and own not in without and others in without
    assert metrics[own] != 0 != metrics[others] and 0 < metrics["policy/clip_fraction"] < 1
    adds, adds_to_default = change(both, alone), change(default, plain)
    assert adds.norm() > 0.01 * norm(alone)
    assert change(both, default).norm() > 0.01 * norm(default)
    differs = (adds - adds_to_default).norm() / adds_to_default.norm()
    assert differs < 1e-4 if method in ADDING or options[:1] == CLIP else differs > 0.1
