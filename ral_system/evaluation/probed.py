"""A model folder loaded to read its attention, when no engine holds it."""

from __future__ import annotations

from pathlib import Path

import torch

from ral_system.config.choices import Dtype
from ral_system.errors import ConfigError
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel


def load_probed(model_folder: Path, dtype: Dtype) -> tuple[PolicyModel, torch.device]:
    """Load a model onto the GPU, if there is one. Raises ConfigError for a family that cannot be probed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(model_folder, dtype=dtype, device=device)
    try:
        return PolicyModel(model, load_family(model_folder), temperature=1.0).to(device), device
    except ValueError as error:
        remedy = "set evaluation.attention_questions=0 and evaluation.attended=null"
        raise ConfigError(f"model {model_folder}: {error}; {remedy}") from error
