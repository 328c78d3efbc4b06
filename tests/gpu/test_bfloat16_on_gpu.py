"""bfloat16 against float32 on the same samples: log-probs, and the direction of a gradient."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator
from ral_system.config.choices import Dtype
from ral_system.config.commands import TrainConfig
from ral_system.media.store import MediaStore
from ral_system.scoring.build import build_policy
from ral_system.training.learner_rank import LearnerRank
from ral_system.training.plan import plan_updates
from ral_system.types import Sample
from tests.composed import compose_config
from tests.gpu.devices import DEVICES, GPU
from tests.gpu.rows import row

pytest.importorskip("hydra")

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
LOG_PROB_LIMIT, MEAN_LIMIT = 0.15, 0.03
"""Nats: of the worst token, and of the mean. bfloat16 rounds weights and activations by up to 0.4 %; on a CPU that made
0.077 and 0.014."""
LEAST_COSINE, NORM_LIMIT = 0.999, 0.01
"""Bounds on the angle between the gradients, and on how far the ratio of their norms may be from 1; on a CPU 0.9997 and
0.0024."""


def compare(what: str, log_probs: list[np.ndarray], gradients: list[Tensor]) -> None:
    apart, (exact, rounded) = np.abs(log_probs[0] - log_probs[1]), gradients
    cosine, ratio = float(torch.cosine_similarity(exact, rounded, dim=0)), float(rounded.norm() / exact.norm())
    row(
        f"bfloat16 and float32, log-probs of {what}", f"mean {apart.mean():.5f} nats", f"largest {apart.max():.5f} nats"
    )
    row(f"bfloat16 and float32, gradients of {what}", f"cosine {cosine:.5f}", f"ratio of norms {ratio:.4f}")
    assert 0 < apart.max() <= LOG_PROB_LIMIT and apart.mean() <= MEAN_LIMIT
    assert cosine >= LEAST_COSINE and abs(ratio - 1) <= NORM_LIMIT


@pytest.mark.parametrize("device", DEVICES)
def test_a_policy_in_bfloat16_agrees_with_one_in_float32(
    device: str, tiny_model: Path, media: MediaStore, rl_samples: list[Sample]
) -> None:
    log_probs, gradients = [], []
    for dtype in DTYPES:
        policy = build_policy(tiny_model, torch.device(device), AttentionRead(), dtype=dtype, temperature=1.0)
        policy.to(device)
        collate, trained = Collator(policy.family, media), list(policy.parameters())
        found: list[np.ndarray] = []
        total = torch.zeros(sum(p.numel() for p in trained), dtype=torch.float64, device=device)
        for sample in rl_samples:
            of_sample = policy(collate((sample,)).to(torch.device(device))).log_probs[0]
            found.append(of_sample.detach().float().cpu().numpy())
            parts = torch.autograd.grad(-sample.advantage * of_sample.sum(), trained, materialize_grads=True)
            total += torch.cat([part.double().flatten() for part in parts])
        log_probs.append(np.concatenate(found))
        gradients.append(total)
    compare("a policy", log_probs, gradients)


def gradients_of(rank: LearnerRank) -> Iterator[Tensor]:
    """Every trained parameter's, summed in float32, which DeepSpeed keeps apart."""
    from deepspeed.utils import safe_get_full_grad

    for _, parameter in rank._engine.policy.named_parameters():
        if parameter.requires_grad:
            yield safe_get_full_grad(parameter).double().flatten()


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_a_learner_in_bfloat16_agrees_with_one_in_float32(
    device: str,
    only_rank: None,
    start_rank: Callable[..., LearnerRank],
    rl_samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A learner in bfloat16 runs on DeepSpeed."""
    log_probs, gradients = [], []
    for dtype in DTYPES:
        rank = start_rank(learner_config(dtype))
        assert rank._engine.device.type == device
        plan, step = plan_updates(rl_samples, updates=1, shards=1, max_tokens=400), rank._engine.step
        kept: list[Tensor] = []

        def watched(rank: LearnerRank = rank, step: Any = step, kept: list[Tensor] = kept) -> float:
            kept.append(torch.cat(list(gradients_of(rank))))
            return float(step())

        monkeypatch.setattr(rank._engine, "step", watched)
        scores = rank.score(plan)
        rank.update(plan.updates[0], scores, None)
        log_probs.append(np.concatenate([scores[sample.id].log_probs for sample in rl_samples]))
        gradients += kept
    compare("a learner", log_probs, gradients)


def learner_config(dtype: Dtype) -> TrainConfig:
    """ZeRO 2 on one rank; the samples have the log-probs of float32 on a CPU."""
    return compose_config(
        *("learner=deepspeed", "learner.world_size=1", "learner.zero_stage=2", f"learner.dtype={dtype}"),
        *("algorithm.kl.coefficient=0", "algorithm.attention.weight=0", "algorithm.correction.kind=none"),
        "rollout.log_prob_gate={token: 1e9, outliers: 0.99, mean: null, p999: null}",
    )
