"""Policies and collators as a run's configuration has them: shared by the learner, the reference and teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from ral_system.config.schema import Dtype, Rows, RunConfig
from ral_system.data.collate import Collator
from ral_system.errors import ConfigError, SetupError
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_model, media_token_ids
from ral_system.models.policy import PolicyModel


def build_policy(
    config: RunConfig,
    model_folder: Path,
    device: torch.device,
    *,
    dtype: Dtype | None = None,
    layers: Literal["last", "all"] | None = None,
    temperature: float | None = None,
) -> PolicyModel:
    """Load a model as the policy that rollouts are drawn from: same temperature, same bans.

    `dtype`, `layers` and `temperature` are those of `learner`, `algorithm.attention` and `rollout` unless given.
    """
    attention = config.algorithm.attention
    if attention.backend == "triton" and device.type != "cuda":
        raise SetupError("algorithm.attention.backend=triton needs a CUDA device; set it to auto or chunked")
    model = load_model(model_folder, dtype=dtype or config.learner.dtype, device=device)
    try:
        return PolicyModel(
            model,
            temperature=temperature or config.rollout.temperature,
            banned_token_ids=media_token_ids(model_folder),
            layers=layers or attention.layers,
            heads=attention.heads,
            backend=attention.backend,
        )
    except ValueError as error:  # a family or layers that cannot be probed
        raise ConfigError(f"model {model_folder}, algorithm.attention: {error}") from error


def build_collator(config: RunConfig, processor: Any, media: MediaStore, *, rows: Rows | None = None) -> Collator:
    """A collator that selects the configured attention rows, unless given, and keys."""
    attention = config.algorithm.attention
    return Collator(processor, media, rows=rows or attention.rows, keys=attention.keys)
