"""What the objective needs of the next-token distributions of a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ral_system.algorithms.token_read import Teacher, TokenRead
from ral_system.config.algorithm import AlgorithmConfig, TokenDistillationConfig
from ral_system.types import MicroBatch, Scores, TokenRecord


def token_read(samples: MicroBatch, teaching: Scores, algorithm: AlgorithmConfig, vocabulary: int) -> TokenRead:
    """Read what `policy_objective` uses: "rollout" and "teacher" are the kept tokens of the two records.

    Raises ValueError that names the sample, for one without top tokens of the rollout, or with a teacher's
    distributions over another number of tokens than `vocabulary`.
    """
    kept, teacher = {}, None
    if algorithm.policy_loss.top_tokens:
        for sample in samples:
            if sample.rollout_top is None or sample.rollout_top.ids is None:
                raise ValueError(f"sample {sample.id}: the rollout engine returned no top tokens")
        kept["rollout"] = _ids([s.rollout_top for s in samples])
    if algorithm.distillation.tokens.weight > 0:
        records = [teaching[s.id].tokens for s in samples]
        for sample, record in zip(samples, records, strict=True):
            assert record is not None, f"sample {sample.id} has no teacher's distributions"
            if record.ids is None and record.log_probs.shape[1] != vocabulary:
                raise ValueError(
                    f"sample {sample.id}: the teacher's distributions are {record.log_probs.shape}, the student's "
                    f"{(len(sample.response_token_ids), vocabulary)}; set algorithm.distillation.tokens.top_k"
                )
        if all(record is not None and record.ids is None for record in records):
            teacher = _teacher(records, algorithm.distillation.tokens)
        else:
            kept["teacher"] = _ids(records)
    trains_entropy = algorithm.entropy_coefficient > 0 or algorithm.perception.exact_entropy
    return TokenRead(entropy=trains_entropy, kept=kept, teacher=teacher)


def _ids(records: Sequence[TokenRecord | None]) -> Tensor:
    return torch.cat([torch.from_numpy(r.ids) for r in records if r is not None and r.ids is not None]).long()


def _teacher(records: Sequence[TokenRecord | None], config: TokenDistillationConfig) -> Teacher:
    log_q = tuple(torch.from_numpy(record.log_probs) for record in records if record is not None)
    return Teacher(log_q, config.divergence, config.jsd_beta)
