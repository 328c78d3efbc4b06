"""Metrics of an update over all micro-batches and ranks, in one reduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ral_system.training.objective import Objective
from ral_system.training.shards import Shards
from ral_system.types import Counts


def reduced_metrics(
    objectives: Sequence[Objective],
    counts: Counts,
    shards: Shards,
    values: np.ndarray | None = None,
) -> tuple[dict[str, float], np.ndarray]:
    """Metrics of all ranks, equal on all, from this one's micro-batches, at least one; and `values` [N] added up.

    Sums and weights add up; for a maximum each shard has a place of its own in the vector that is added up.
    """
    names = [list(part) for part in (objectives[0].sums, objectives[0].weighted, objectives[0].maxima)]
    sums = _table([[o.sums[n] for n in names[0]] for o in objectives]).sum(0)
    weighted = _table([[part for n in names[1] for part in o.weighted[n]] for o in objectives]).sum(0)
    maxima = torch.zeros(shards.count, len(names[2]), dtype=torch.float64)
    if names[2]:
        maxima[shards.own] = _table([[o.maxima[n] for n in names[2]] for o in objectives]).amax(0)
    extra = torch.from_numpy(np.zeros(0) if values is None else values.astype(np.float64))
    parts = [sums, weighted, maxima.flatten(), extra]
    sums, weighted, maxima, extra = shards.sum(torch.cat(parts)).cpu().split([len(part) for part in parts])
    pairs = [tuple(pair) for pair in weighted.view(-1, 2).tolist()]
    return combine_metrics(
        dict(zip(names[0], sums.tolist(), strict=True)),
        dict(zip(names[1], pairs, strict=True)),
        dict(zip(names[2], maxima.view(shards.count, -1).amax(0).tolist() if names[2] else (), strict=True)),
        counts,
    ), extra.numpy()


def _table(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """float64 on the CPU, with one copy from each device for each row."""
    return torch.stack([_on_host(row) for row in rows])


def _on_host(row: Sequence[Tensor]) -> Tensor:
    """Scalars of any devices: what is counted on the host is reported beside what a GPU computes."""
    found = torch.zeros(len(row), dtype=torch.float64)
    for device in {value.device for value in row}:
        of_device = [i for i, value in enumerate(row) if value.device == device]
        found[of_device] = torch.stack([row[i].double() for i in of_device]).cpu()
    return found


def combine_metrics(
    sums: Mapping[str, float],
    weighted: Mapping[str, tuple[float, float]],
    maxima: Mapping[str, float],
    counts: Counts,
) -> dict[str, float]:
    """Global sums to means: per response token, or by their own weights. A mean of nothing is left out, a JSD 0."""
    metrics = dict(maxima) | {name: value / counts.tokens for name, value in sums.items()}
    for name, (value, weight) in weighted.items():
        if weight > 0 or name.startswith("attention/divergence"):
            metrics[name] = value / weight if weight > 0 else 0.0
    return metrics
