"""Load models and processors from Hugging Face folders; errors are one line."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from ral_system.attention.probe import IMPLEMENTATION
from ral_system.config.choices import Dtype
from ral_system.errors import SetupError
from ral_system.families.family import Family
from ral_system.families.known import family_of
from ral_system.models.folders import check_model_folder, model_type
from ral_system.models.patches import attend_to_segments_together, embed_patches_by_product
from ral_system.models.spread import spread

transformers_logging.disable_progress_bar()

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    folder: Path, *, dtype: Dtype, device: torch.device | str = "cpu", others: Sequence[torch.device] = ()
) -> PreTrainedModel:
    """A vision-language model whose attention can be probed, in evaluation mode. Raises SetupError.

    `others` hold part of its decoder layers, each read from the files to its own device.
    """
    check_model_folder(folder)
    try:
        model, found = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=TORCH_DTYPES[dtype], attn_implementation=IMPLEMENTATION, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise SetupError(f"cannot load a model from {folder}: {_first_line(error)}") from error
    if missing := sorted(found["missing_keys"]):  # transformers would start them at random
        raise SetupError(
            f"model folder {folder}: {len(missing)} weights are missing, {missing[0]} first; copy it again"
        )
    embed_patches_by_product(model)
    attend_to_segments_together(model)
    spread(model, [device, *others])
    return model.eval()


def save_model(
    model: PreTrainedModel, weights: Mapping[str, Tensor], processor: Any, folder: Path, start: Path
) -> None:
    """Write model and processor in Hugging Face format. The generation settings stay those of the folder `start`."""
    model.generation_config = GenerationConfig()  # transformers refuses to write some that are published
    model.save_pretrained(folder, state_dict=weights)
    processor.save_pretrained(folder)
    if (start / GENERATION_CONFIG_NAME).is_file():
        shutil.copyfile(start / GENERATION_CONFIG_NAME, folder / GENERATION_CONFIG_NAME)
    else:
        (folder / GENERATION_CONFIG_NAME).unlink()


def load_family(folder: Path) -> Family:
    """The family of a model folder, with its configuration and processor (tokenizer, image processor, chat template).

    Raises SetupError, also for a family that is not known.
    """
    check_model_folder(folder)
    family = family_of(model_type(folder, f"model folder {folder}"), f"model {folder}")
    try:
        return family(AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder))
    except (OSError, ValueError, ImportError) as error:  # SmolVLM's wants a package of its own
        raise SetupError(f"cannot load a processor from {folder}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
