"""The visual attention score of a model folder over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ral_system.attention.read import QUESTION_AT_ALL_LAYERS
from ral_system.attention.visual_score import VisualScore, mean_score, visual_score
from ral_system.batches.collate import Collator
from ral_system.batches.micro_batches import micro_batches
from ral_system.config.choices import Dtype
from ral_system.evaluation.probed import load_probed
from ral_system.media.store import MediaStore
from ral_system.types import Prompt, Sample


def measure_visual_score(
    model_folder: Path, prompts: Sequence[Prompt], media: MediaStore, *, dtype: Dtype, max_tokens: int
) -> VisualScore | None:
    """Measure the score over all layers, heads and rows of the prompts' questions; None where no prompt defines it.

    Raises ConfigError for a family that cannot be probed.
    """
    policy, device = load_probed(model_folder, dtype)
    collate = Collator(policy.family, media)
    scores = []
    for samples in micro_batches([(Sample(prompt.id, prompt, ()),) for prompt in prompts], max_tokens):
        tensors = collate(samples).to(device)
        with torch.no_grad():
            attention = policy(tensors, [QUESTION_AT_ALL_LAYERS]).attention[QUESTION_AT_ALL_LAYERS]
        parts = zip(attention, tensors.keys.split(tensors.packing.lengths), strict=True)
        scores += [score for rows, keys in parts if (score := visual_score(rows, keys)) is not None]
    return mean_score(scores) if scores else None
