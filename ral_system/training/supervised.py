"""The supervised objective of one micro-batch: cross-entropy, and AVAR's attention guidance beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ral_system.algorithms.attention_guidance import attention_guidance
from ral_system.attention.group import GroupAttention, LayerAttention
from ral_system.attention.mean_attention import log_mean_attention
from ral_system.attention.provenance import KeyKind, KeyProvenance
from ral_system.attention.window import Window
from ral_system.batches.collate import TensorBatch
from ral_system.config.supervised import AttentionGuidanceConfig
from ral_system.errors import ConfigError
from ral_system.models.policy import PolicyOutput
from ral_system.training.objective import Objective
from ral_system.types import Counts


def supervised_objective(
    output: PolicyOutput,
    rows: Sequence[GroupAttention],
    batch: TensorBatch,
    counts: Counts,
    guidance: AttentionGuidanceConfig | None = None,
) -> Objective:
    """Cross-entropy of the response tokens, mean over the update's tokens; with `guidance` also the term of `rows`."""
    nll = -output.log_probs.sum()
    sums = {"supervised/loss": nll.detach(), "supervised/token_accuracy": output.top1.sum().float()}
    loss = nll / counts.tokens
    if guidance is None:
        return Objective(loss, sums)
    guided, weighted = guide_attention(rows, batch, counts, guidance)
    return Objective(loss + guided, sums, weighted)


def guide_attention(
    attention: Sequence[GroupAttention], batch: TensorBatch, counts: Counts, guidance: AttentionGuidanceConfig
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """AVAR's a · L_enh + b · L_sup, mean over the update's sequences, and the masses that the rows' attention has.

    A sequence whose rows see no picture contributes 0; one without a system turn has no L_sup.
    """
    loss = torch.zeros((), device=batch.input_ids.device)
    masses = {"image": [0.0, 0.0], "system": [0.0, 0.0]}
    for of_group, keys, layers, rows in _by_response(attention, batch):
        if not len(rows):
            continue
        seen_T = torch.arange(len(keys.kind), device=rows.device) <= rows.max()
        image_T = ((keys.kind == KeyKind.IMAGE) | (keys.kind == KeyKind.VIDEO)) & seen_T
        system_T = (keys.kind == KeyKind.SYSTEM) & seen_T
        if not image_T.any():
            continue
        masks = {"image": image_T} | ({"system": system_T} if system_T.any() else {})
        windows = [of_group.window(at) for at in layers]
        for layer, window in enumerate(windows):
            _check_reach(layer, window, rows, masks)
        by_layer = [
            log_mean_attention(at, rows, *masks.values(), branches=of_group.branches, window=window)
            for at, window in zip(layers, windows, strict=True)
        ]
        logs = {
            name: of_group.all_heads(torch.stack(of))
            for name, of in zip(masks, zip(*by_layer, strict=True), strict=True)
        }
        term = attention_guidance(logs["image"], logs.get("system"), image=guidance.image, system=guidance.system)
        loss = loss + term / counts.sequences
        for name, log_mean_LH in logs.items():
            masses[name][0] += float(log_mean_LH.detach().exp().mean()) * int(masks[name].sum())
            masses[name][1] += 1
    metrics = {f"supervised/{name}_attention": (torch.tensor(m), torch.tensor(n)) for name, (m, n) in masses.items()}
    return loss, metrics


def _check_reach(layer: int, window: Window | None, rows: Tensor, masks_T: Mapping[str, Tensor]) -> None:
    """Raise ConfigError where a layer's window ends before the keys that rows are guided to or away from."""
    for name, mask_T in masks_T.items():
        if window is not None and not (window.reaches(rows).any(0) & mask_T).any():
            raise ConfigError(
                f"sft.attention_guidance.{name}: layer {layer} sees {window.size} tokens back, and the question is "
                f"further from all {name} tokens of its prompt; set it to 0, or ask shorter questions"
            )


def _by_response(
    attention: Sequence[GroupAttention], batch: TensorBatch
) -> Iterator[tuple[GroupAttention, KeyProvenance, list[LayerAttention], Tensor]]:
    """The group, its keys, and of each response the rows with their queries."""
    for group, keys in zip(attention, batch.keys.split(batch.packing.lengths), strict=True):
        queries = zip(*(at.query.split(group.counts) for at in group.layers), strict=True)
        for rows, of_response in zip(group.rows.split(group.counts), queries, strict=True):
            pairs = zip(group.layers, of_response, strict=True)
            yield group, keys, [replace(at, query=query) for at, query in pairs], rows
