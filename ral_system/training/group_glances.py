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
    own = np.zeros(len(samples))
    for i, sample in enumerate(samples):
        if sample.id in scores and (glances := scores[sample.id].glances) is not None:
            own[i] = glances.size
    sizes = shards.sum(torch.from_numpy(own)).cpu().numpy().astype(int)
    ends = np.cumsum(sizes)
    flat = np.zeros(int(ends[-1]))
    for i, sample in enumerate(samples):
        if own[i]:
            flat[ends[i] - sizes[i] : ends[i]] = scores[sample.id].glances.ravel()  # type: ignore[union-attr]
    everyone = shards.sum(torch.from_numpy(flat)).cpu().numpy().astype(np.float32)
    groups: dict[str, list[tuple[Sample, np.ndarray]]] = defaultdict(list)
    for i, sample in enumerate(samples):
        groups[sample.prompt.id].append((sample, everyone[ends[i] - sizes[i] : ends[i]]))
    found = dict(scores)
    for members in groups.values():
        members.sort(key=lambda member: member[0].index)
        mine = [sample for sample, _ in members if sample.id in scores]
        if not mine or (first := scores[mine[0].id].glances) is None:
            continue
        together = np.stack([glances.reshape(first.shape) for _, glances in members])
        for sample in mine:
            found[sample.id] = replace(scores[sample.id], group_glances=together)
    return found
