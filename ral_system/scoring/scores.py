"""Conversion of a frozen forward pass to values that cross processes: log-probs, attention records, statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ral_system.algorithms.kl import ESTIMATORS
from ral_system.algorithms.token_read import TokenValues
from ral_system.attention.group import GroupAttention
from ral_system.attention.metrics import row_statistics
from ral_system.attention.provenance import KeyProvenance
from ral_system.attention.read import AttentionRead
from ral_system.attention.record import record_attention
from ral_system.attention.selection import row_tokens, shared_keys
from ral_system.attention.visual_reward import response_visual_rewards
from ral_system.batches.collate import TensorBatch
from ral_system.batches.micro_batches import groups_of
from ral_system.config.attention import AttentionConfig
from ral_system.config.choices import Rows
from ral_system.config.reward import VisualRewardConfig
from ral_system.models.loading import TORCH_DTYPES
from ral_system.models.policy import PolicyOutput
from ral_system.types import AttentionRecord, MicroBatch, Sample, SampleScores, Scores, TokenRecord


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
    glances: bool = False,
) -> Scores:
    """Turn a frozen forward pass into host arrays, sample by sample.

    `read` becomes attention records, with `glances` also how much its rows look at what their group shares, `response`
    the visual reward; either may be None. `version` of the weights that made it; None for a model without one, whose
    records take that of the rollout.
    """
    log_probs_BR = output.log_probs.float().cpu().numpy()
    scores = {
        s.id: SampleScores(log_probs_R[: len(s.response_token_ids)].copy())
        for s, log_probs_R in zip(samples, log_probs_BR, strict=True)
    }
    if output.visual_similarity is not None:
        for sample, row in zip(samples, output.visual_similarity.cpu().numpy(), strict=True):
            own = row[: len(sample.response_token_ids)].copy() if sample.prompt.media else None
            scores[sample.id] = replace(scores[sample.id], visual_similarity=own)
    keys, groups = batch.keys.split(batch.packing.lengths), groups_of(samples)
    for i, group in enumerate(groups):
        if read is not None:
            for rows, of_rows, part in _parts(output.attention[read][i], keys[i], group):
                watched = glances and attention.rows != "instruction"  # whose rows are the same for all responses
                shared = shared_keys(attention.glance_keys, of_rows) if watched else None
                watch = Watch(of_rows, shared, whole=attention.compares_looks)
                records = _read_rows(rows, watch, part, attention, version)
                found = zip(part, records, watch.statistics(rows.counts), watch.glances(len(part)), strict=True)
                for sample, of_sample, statistics, looks in found:
                    scores[sample.id] = replace(
                        scores[sample.id], attention=of_sample, row_statistics=statistics, glances=looks
                    )
        if response is not None:
            rewards = response_visual_rewards(output.attention[response][i], keys[i], visual.form)
            for sample, reward in zip(group, rewards, strict=True):
                scores[sample.id] = replace(scores[sample.id], visual_reward=reward)
    return scores


def visual_rewards(scores: Scores) -> dict[str, float]:
    """Return r_vis by sample id, for the samples that have one."""
    return {id: s.visual_reward for id, s in scores.items() if s.visual_reward is not None}


def kl_sums(estimator: str, behaviour: Scores, reference: Scores) -> dict[str, float]:
    """Sum over each response of an estimate of KL(pi ‖ reference), by sample id, in nats."""
    estimate = ESTIMATORS[estimator]
    return {
        id: float(estimate(*(torch.from_numpy(s.log_probs).double() for s in (mine, reference[id]))).sum())
        for id, mine in behaviour.items()
    }


def of_makers(
    sample: Sample, by_version: Mapping[int, SampleScores], kind: Rows, rows: Callable[[Rows, Sample], Tensor]
) -> SampleScores:
    """Scores of a sample at the weights that made each of its tokens; `rows` tells which of its rows are recorded."""
    if not sample.switches:
        return by_version[sample.weight_version]
    made = sample.token_versions()
    return join_versions(by_version, made, made[row_tokens(kind, sample, rows(kind, sample).tolist())])


def join_versions(
    by_version: Mapping[int, SampleScores], token_versions: np.ndarray, row_versions: np.ndarray
) -> SampleScores:
    """Scores of a sample that several weights made, out of its scores at each of them.

    Every token's log-prob, and the attention row that belongs to it, are those at the weights that made the token; the
    visual reward and the glances, which are figures for all tokens together, are those at the last ones.
    """

    def of_tokens(at: Mapping[int, np.ndarray]) -> np.ndarray:
        return _pick(at, token_versions, -1)

    def of_rows(at: Mapping[int, np.ndarray], axis: int = -1) -> np.ndarray:
        return _pick(at, row_versions, axis)

    last = by_version[int(token_versions[-1])]
    similarity = {v: found for v, s in by_version.items() if (found := s.visual_similarity) is not None}
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
        glances=last.glances,
        visual_reward=last.visual_reward,
        visual_similarity=of_tokens(similarity) if similarity else None,
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


class Watch:
    """What the rows of a group look at: statistics of the last layer's, and glances of the same, or, `whole`, of every
    layer's and head's, as objectives compare them.
    """

    def __init__(self, keys: KeyProvenance, shared_N: Tensor | None, *, whole: bool) -> None:
        self._keys, self._shared, self._whole = keys, shared_N, whole
        self._statistics: list[dict[str, Tensor]] = []
        self._glances: list[Tensor] = []

    def layer(self, rows: GroupAttention, layer: int) -> Iterator[Tensor]:
        """The policies of one layer over all keys, in blocks, watched as they pass."""
        last, at, found = layer == len(rows.layers) - 1, 0, None
        for block in rows.policies(layer):
            if last:
                self._statistics.append(row_statistics(mean_over_heads(block), self._keys))
            if self._shared is not None and (last or self._whole):
                end, of_heads = at + block.shape[-2], block if self._whole else mean_over_heads(block)
                part = rows.belongs[:, at:end].to(block.dtype) @ of_heads[..., self._shared]
                found, at = part if found is None else found + part, end
            yield block
        if found is not None:
            self._glances.append(found)

    def wants(self, layer: int, rows: GroupAttention) -> bool:
        """Return whether there is something to see in a layer."""
        return (self._shared is not None and self._whole) or layer == len(rows.layers) - 1

    def statistics(self, counts: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """One figure per row, for each response."""
        ends = np.cumsum(counts)[:-1]
        by_name = {
            name: np.split(torch.cat([block[name] for block in self._statistics]).float().cpu().numpy(), ends)
            for name in self._statistics[0]
        }
        return [{name: split[i].copy() for name, split in by_name.items()} for i in range(len(counts))]

    def glances(self, responses: int) -> list[np.ndarray | None]:
        """[layers, N] or [layers, H, N] for each response; None unless they were asked for."""
        if not self._glances:
            return [None] * responses
        found = torch.stack(self._glances).movedim(-2, 0).float().cpu().numpy()
        return [of_response.copy() for of_response in found]


def _read_rows(
    rows: GroupAttention, watch: Watch, group: MicroBatch, attention: AttentionConfig, version: int | None
) -> Sequence[tuple[AttentionRecord, ...]]:
    """Record each sample's attention per probed layer; `watch` sees policies over all keys, including those not
    counted."""
    records = []
    for layer in range(len(rows.layers)):
        blocks = watch.layer(rows, layer) if rows.key_mask is None else rows.policies(layer)
        records.append(_records(rows, blocks, group, attention, version))
        if rows.key_mask is not None and watch.wants(layer, rows):
            for _ in watch.layer(replace(rows, key_mask=None), layer):
                pass
    return list(zip(*records, strict=True))


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
