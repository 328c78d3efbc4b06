"""Whether vLLM can serve a model, told without vLLM: before anything starts, and once more where an engine does."""

from __future__ import annotations

from pathlib import Path

from ral_system.config.choices import Device, Dtype
from ral_system.errors import SetupError
from ral_system.families.family import Family
from ral_system.models.folders import check_engine_names


def check_servable(model_folder: Path, family: Family, device: Device, dtype: Dtype) -> None:
    """Raise SetupError for a model that vLLM would compute otherwise on this device or in this type, or whose weights
    have names that it does not know.
    """
    if problem := family.engine_problem(device, dtype):
        raise SetupError(problem)
    check_engine_names(model_folder, family.engine_names)
