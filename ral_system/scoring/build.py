"""Construction of the policy, for the learner, the reference and teachers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ral_system.attention.kernels import kernel_for
from ral_system.attention.read import AttentionRead
from ral_system.config.choices import Dtype
from ral_system.errors import ConfigError, SetupError
from ral_system.models.loading import TORCH_DTYPES, load_family, load_model
from ral_system.models.policy import PolicyModel


def build_policy(
    model_folder: Path,
    device: torch.device,
    read: AttentionRead,
    *,
    dtype: Dtype,
    temperature: float,
    others: Sequence[torch.device] = (),
) -> PolicyModel:
    """Load a model as the policy that rollouts are drawn from, at their `temperature` and with their bans.

    A pass begins and ends on `device`; `others` hold part of the decoder layers.
    Raises ConfigError for a model whose attention cannot be read as `read` asks.
    """
    if read.backend == "triton" and device.type != "cuda":
        raise SetupError("algorithm.attention.backend=triton needs a CUDA device; set it to auto or chunked")
    kernel_for(device, TORCH_DTYPES[dtype])  # whether it can be used, before the model is loaded
    family = load_family(model_folder)
    model = load_model(model_folder, dtype=dtype, device=device, others=others)
    try:
        policy = PolicyModel(model, family, temperature=temperature)
        policy.check(read)
    except ValueError as error:  # a family or layers that cannot be probed
        raise ConfigError(f"model {model_folder}, algorithm.attention: {error}") from error
    return policy
