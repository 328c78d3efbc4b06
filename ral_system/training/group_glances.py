"""Exchange of where responses look, within their groups, whose members may be scored by different ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ral_system.training.shards import Shards
from ral_system.types import MicroBatch, Sample, Scores


def with_group_glances(by_shard: Sequence[Sequence[MicroBatch]], shards: Shards, scores: Scores) -> Scores:
    """Give each of this rank's samples the glances of its whole group, in the order of the responses.

    `by_shard` holds the samples of every shard. All ranks call it together; each has the glances of its own samples.
    """
    samples = [s for of_shard in by_shard for micro in of_shard for s in micro]
    mine = {i: found for i, s in enumerate(samples) if s.id in scores and (found := scores[s.id].glances) is not None}
    sizes = np.zeros(len(samples))
    sizes[list(mine)] = [found.size for found in mine.values()]
    sizes = shards.sum(torch.from_numpy(sizes)).cpu().numpy().astype(int)
    ends = np.cumsum(sizes)
    flat = np.zeros(int(ends[-1]))
    for i, found in mine.items():
        flat[ends[i] - sizes[i] : ends[i]] = found.ravel()
    everyone = shards.sum(torch.from_numpy(flat)).cpu().numpy().astype(np.float32)
    groups: dict[str, list[tuple[Sample, np.ndarray]]] = defaultdict(list)
    for i, sample in enumerate(samples):
        groups[sample.prompt.id].append((sample, everyone[ends[i] - sizes[i] : ends[i]]))
    whole = dict(scores)
    for members in groups.values():
        members.sort(key=lambda member: member[0].index)
        scored = [sample.id for sample, _ in members if sample.id in scores]
        if not scored or (first := scores[scored[0]].glances) is None:
            continue
        together = np.stack([glances.reshape(first.shape) for _, glances in members])
        for id in scored:
            whole[id] = replace(scores[id], group_glances=together)
    return whole
