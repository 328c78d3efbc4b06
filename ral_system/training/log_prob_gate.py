"""The gate between two engines: at the same weights, rollout and learner must give sampled tokens like log-probs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ral_system.config.rollout import LogProbGateConfig
from ral_system.errors import LogProbError
from ral_system.training.shards import Shards
from ral_system.types import MicroBatch, Sample, Scores


def log_prob_gaps(shards: Sequence[Sequence[MicroBatch]], rank: int, scores: Scores) -> np.ndarray:
    """|rollout - learner| of every response token of all ranks' samples, float64 [N], in nats.

    Only `rank`'s own entries are filled in, from its `scores`; those of the others are 0, so summing over ranks gives
    the whole batch to each.
    """
    return np.concatenate(
        [
            np.abs(scores[s.id].log_probs - np.asarray(s.rollout_log_probs))
            if owner == rank
            else np.zeros(len(s.response_token_ids))
            for owner, micro_batches in enumerate(shards)
            for samples in micro_batches
            for s in samples
        ]
    )


def check_all_log_probs(
    by_shard: Sequence[Sequence[MicroBatch]], shards: Shards, scores: Scores, gate: LogProbGateConfig
) -> float:
    """Check the gaps of all ranks on every rank, so a batch beyond the gate ends them together; return the largest."""
    gaps = shards.sum(torch.from_numpy(log_prob_gaps(by_shard, shards.own, scores))).cpu().numpy()
    check_log_prob_gaps([s for of_shard in by_shard for micro in of_shard for s in micro], gaps, gate)
    return float(gaps.max())


def check_log_prob_gaps(samples: Sequence[Sample], gaps_N: np.ndarray, gate: LogProbGateConfig) -> None:
    """Hold the gaps of a batch's tokens, which follow one another sample by sample, to the configured bounds.

    Raises LogProbError, which names the sample with the largest gap and the bounds that were broken. A
    gap that is not a number breaks them whatever they are.
    """
    mean, p999 = float(gaps_N.mean()), quantile(gaps_N)
    outliers = int((~(gaps_N <= gate.token)).sum())
    allowed = max(1, int(gate.outliers * len(gaps_N))) if gate.outliers > 0 else 0
    broken = []
    if outliers > allowed or np.isnan(mean):
        broken.append(
            f"{outliers} of {len(gaps_N)} tokens by more than rollout.log_prob_gate.token={gate.token:g}, where "
            f"rollout.log_prob_gate.outliers={gate.outliers:g} allows {allowed}"
        )
    if gate.mean is not None and not mean <= gate.mean:
        broken.append(f"their mean by {mean:.3g}, more than rollout.log_prob_gate.mean={gate.mean:g}")
    if gate.p999 is not None and not p999 <= gate.p999:
        broken.append(f"their 99.9 % quantile by {p999:.3g}, more than rollout.log_prob_gate.p999={gate.p999:g}")
    if broken:
        raise LogProbError(
            f"sample {_owner(samples, int(np.argmax(gaps_N))).id}: rollout and learner log-probs differ by "
            f"{gaps_N.max():.3g} ({'; '.join(broken)}); the two engines compute different policies"
        )


def quantile(gaps_N: np.ndarray) -> float:
    """The 99.9 % quantile as the observed value below it: of 3 to 1,001 tokens the second largest."""
    return float(np.quantile(gaps_N, 0.999, method="lower"))


def _owner(samples: Sequence[Sample], token: int) -> Sample:
    ends = np.cumsum([len(s.response_token_ids) for s in samples])
    return samples[int(np.searchsorted(ends, token, side="right"))]
