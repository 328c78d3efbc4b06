"""What this package uses of DeepSpeed that DeepSpeed does not document. Checked against deepspeed 0.19.8."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import deepspeed.comm  # noqa: F401  so that the module below is there
import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor


def reduce_by_gloo_on_cpu() -> None:
    """Keep DeepSpeed from compiling its C++ all-reduce for CPUs at the first start, for minutes; gloo's serves."""
    vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: None  # as attribute the name is torch itself


def own_partition(parameter: Any) -> Tensor:
    """This rank's part of a ZeRO-3 parameter."""
    part: Tensor = parameter.ds_tensor
    return part


def gather_small_parameters_again(engine: Any) -> None:
    """Drop the small parameters that ZeRO-3 keeps gathered, and gather them from their partitions; collective."""
    if whole := engine.optimizer.persistent_parameters:
        whole[0].partition(whole)
        whole[0].all_gather(whole)


def gathered(parameters: Sequence[Any]) -> AbstractContextManager[None]:
    """Whole ZeRO-3 parameters on every rank inside the block; collective."""
    context: AbstractContextManager[None] = GatheredParameters(parameters)
    return context


def read_weights_only(engine: Any) -> None:
    """Let an engine write its own checkpoint files, and read them without unpickling arbitrary objects."""
    engine.checkpoint_engine = _WeightsOnlyCheckpoint()


class _WeightsOnlyCheckpoint(TorchCheckpointEngine):
    def save(self, state_dict: Any, path: str) -> Any:
        return super().save(_without_enums(state_dict), path)

    def load(self, path: str, map_location: Any = None) -> Any:
        with torch.serialization.safe_globals([LossScaler, fragment_address]):
            return torch.load(path, map_location=map_location, weights_only=True)


def _without_enums(state: Any) -> Any:
    """ZeRO stages as plain numbers: Python before 3.11.4 pickles an enum member as a call of `getattr`, which a load of
    weights only must not allow."""
    if isinstance(state, ZeroStageEnum):
        return int(state)
    return {key: _without_enums(value) for key, value in state.items()} if type(state) is dict else state
