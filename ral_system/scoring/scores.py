"""Conversion of a frozen forward pass to values that cross processes: log-probs, attention records, statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ral_system.algorithms.token_read import TokenValues
from ral_system.attention.group import GroupAttention
from ral_system.attention.metrics import row_statistics
from ral_system.attention.provenance import KeyProvenance
from ral_system.attention.read import AttentionRead
from ral_system.attention.record import record_attention
from ral_system.attention.visual_reward import response_visual_rewards
from ral_system.config.attention import AttentionConfig
from ral_system.config.reward import VisualRewardConfig
from ral_system.data.collate import TensorBatch
from ral_system.data.micro_batches import groups_of
from ral_system.models.loading import TORCH_DTYPES
from ral_system.models.policy import PolicyOutput
from ral_system.types import AttentionRecord, MicroBatch, SampleScores, Scores, TokenRecord


def to_scores(
    output: PolicyOutput,
    batch: TensorBatch,
    samples: MicroBatch,
    attention: AttentionConfig,
    visual: VisualRewardConfig,
    *,
    read: AttentionRead | None,
    response: AttentionRead | None,
    version: int | None = None,
) -> Scores:
    """Turn a frozen forward pass into host arrays, sample by sample.

    `read` becomes attention records, `response` the visual reward; either may be None. `version` of the weights that
    made it; None for a model without one, whose records take that of the rollout.
    """
    log_probs_BR = output.log_probs.float().cpu().numpy()
    scores = {
        s.id: SampleScores(log_probs_R[: len(s.response_token_ids)].copy())
        for s, log_probs_R in zip(samples, log_probs_BR, strict=True)
    }
    keys, groups = batch.keys.split(batch.packing.lengths), groups_of(samples)
    for i, group in enumerate(groups):
        if read is not None:
            for rows, of_rows, part in _parts(output.attention[read][i], keys[i], group):
                found = _read_rows(rows, of_rows, part, attention, version)
                for sample, (records, statistics) in zip(part, found, strict=True):
                    scores[sample.id] = replace(scores[sample.id], attention=records, row_statistics=statistics)
        if response is not None:
            rewards = response_visual_rewards(output.attention[response][i], keys[i], visual.form)
            for sample, reward in zip(group, rewards, strict=True):
                scores[sample.id] = replace(scores[sample.id], visual_reward=reward)
    return scores


def visual_rewards(scores: Scores) -> dict[str, float]:
    """Return r_vis by sample id, for the samples that have one."""
    return {id: s.visual_reward for id, s in scores.items() if s.visual_reward is not None}


def join_versions(
    by_version: Mapping[int, SampleScores], token_versions: np.ndarray, row_versions: np.ndarray
) -> SampleScores:
    """Scores of a sample that several weights made, out of its scores at each of them.

    Every token's log-prob, and the attention row that belongs to it, are those at the weights that made the token; the
    visual reward, which is one figure for all tokens, is that at the last ones.
    """

    def of_tokens(at: Mapping[int, np.ndarray]) -> np.ndarray:
        return _pick(at, token_versions, -1)

    def of_rows(at: Mapping[int, np.ndarray], axis: int = -1) -> np.ndarray:
        return _pick(at, row_versions, axis)

    last = by_version[int(token_versions[-1])]
    records = []
    for layer, record in enumerate(last.attention):
        at = {version: scores.attention[layer] for version, scores in by_version.items()}
        joined = replace(
            record, version=int(token_versions[0]), values=of_rows({v: r.values for v, r in at.items()}, -2)
        )
        if record.indices is not None:
            joined = replace(
                joined,
                indices=of_rows({v: r.indices for v, r in at.items() if r.indices is not None}, -2),
                tail=of_rows({v: r.tail for v, r in at.items() if r.tail is not None}),
            )
        records.append(joined)
    return SampleScores(
        of_tokens({v: s.log_probs for v, s in by_version.items()}),
        tuple(records),
        {name: of_rows({v: s.row_statistics[name] for v, s in by_version.items()}) for name in last.row_statistics},
        visual_reward=last.visual_reward,
    )


def _pick(at: Mapping[int, np.ndarray], versions: np.ndarray, axis: int) -> np.ndarray:
    """Along `axis`, the entry of the version that `versions` names."""
    arrays = np.stack(list(at.values()))
    which = np.searchsorted(list(at), versions)  # versions come in order
    shape = [1] * arrays[0].ndim
    shape[axis] = len(versions)
    return np.take_along_axis(arrays, which.reshape(1, *shape), axis=0)[0]


def to_teaching(
    output: PolicyOutput,
    samples: MicroBatch,
    attention: AttentionConfig,
    *,
    read: AttentionRead | None,
) -> Scores:
    """Turn a teacher's forward pass into host arrays: attention records of `read`, and the distributions that the pass
    read, of the most likely tokens or of the vocabulary.

    What nobody reads, its log-probs and what its rows look at, is left out.
    """
    counts = [len(s.response_token_ids) for s in samples]
    records = _token_records(output.tokens, counts)
    scores = {
        sample.id: SampleScores(np.zeros(0, np.float32), tokens=record)
        for sample, record in zip(samples, records, strict=True)
    }
    for of_group, group in zip(output.attention[read], groups_of(samples), strict=True) if read else ():
        for rows, _, part in _parts(of_group, None, group):
            for sample, of_sample in zip(part, _records(rows, rows.policies(0), part, attention, None), strict=True):
                scores[sample.id] = replace(scores[sample.id], attention=(of_sample,))
    return scores


def merge_teachers(teachers: Sequence[Scores]) -> Scores:
    """Merge what all teachers recorded of each sample: one's distributions, another's attention."""
    merged: Scores = {}
    for scores in teachers:
        for id, mine in scores.items():
            before = merged.setdefault(id, mine)
            merged[id] = replace(
                before, attention=before.attention or mine.attention, tokens=before.tokens or mine.tokens
            )
    return merged


def _token_records(values: TokenValues, counts: Sequence[int]) -> Sequence[TokenRecord | None]:
    """Distributions sample by sample; None if the pass read none."""
    if values.whole is not None:
        return [TokenRecord(of_sample.numpy()) for of_sample in values.whole.split(counts)]
    if values.top_ids is None:
        return [None] * len(counts)
    ids = values.top_ids.int().cpu().split(counts)
    log_probs = values.kept["top"].cpu().split(counts)
    return [TokenRecord(p.numpy(), i.numpy()) for p, i in zip(log_probs, ids, strict=True)]


def _parts(rows: GroupAttention, keys: Any, group: MicroBatch) -> Iterator[tuple[GroupAttention, Any, MicroBatch]]:
    """A group as its divergences are computed: together, or each response over its own keys. So records of the same
    weights differ from it by exactly 0.
    """
    if not rows.is_mostly_empty:
        yield rows, keys, group
        return
    for response, (one, sample) in enumerate(zip(rows.apart(), group, strict=True)):
        yield one, keys.own(rows.group, response) if keys is not None else None, (sample,)


def _read_rows(
    rows: GroupAttention, keys: KeyProvenance, group: MicroBatch, attention: AttentionConfig, version: int | None
) -> list[tuple[tuple[AttentionRecord, ...], dict[str, np.ndarray]]]:
    """For each sample a record per probed layer, and the last layer's row statistics over all keys, including
    uncounted ones.
    """
    last, statistics = len(rows.layers) - 1, []

    def watched(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        for block in blocks:
            statistics.append(row_statistics(mean_over_heads(block), keys))
            yield block

    records = []
    for layer in range(len(rows.layers)):
        blocks = rows.policies(layer)
        watch = layer == last and rows.key_mask is None
        records.append(_records(rows, watched(blocks) if watch else blocks, group, attention, version))
    if rows.key_mask is not None:
        for _ in watched(replace(rows, key_mask=None).policies(last)):
            pass
    ends = np.cumsum(rows.counts)[:-1]
    by_name = {
        name: np.split(torch.cat([block[name] for block in statistics]).float().cpu().numpy(), ends)
        for name in statistics[0]
    }
    return [
        (of_sample, {name: split[i].copy() for name, split in by_name.items()})
        for i, of_sample in enumerate(zip(*records, strict=True))
    ]


def _records(
    rows: GroupAttention,
    blocks: Iterator[Tensor],
    group: MicroBatch,
    settings: AttentionConfig,
    version: int | None,
) -> list[AttentionRecord]:
    """One record for each sample, out of blocks of its group's policies."""
    return [
        record_attention(
            (block for _, block in of_sample),
            version=sample.weight_version if version is None else version,
            tokens=sample.length,
            top_k=settings.top_k if settings.record == "top_k" else None,
            dtype=TORCH_DTYPES[settings.record_dtype],
        )
        for sample, (_, of_sample) in zip(group, groupby(rows.by_response(blocks), itemgetter(0)), strict=True)
    ]


def mean_over_heads(policy: Tensor) -> Tensor:
    """[R, T] of [R, T] or [H, R, T]."""
    return policy.mean(0) if policy.ndim == 3 else policy
