"""What this package uses of DeepSpeed that DeepSpeed does not document. Checked against deepspeed 0.19.8."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import deepspeed.comm  # noqa: F401  so that the module below is there
import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as _State
from deepspeed.runtime.zero.utils import get_mapping_to_flat_buffer
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor
from torch.distributed import distributed_c10d

from ral_system.models.host_copies import HostCopies
from ral_system.training.optim import optimizer_state


def reduce_by_gloo_on_cpu() -> None:
    """Keep DeepSpeed from compiling its C++ all-reduce for CPUs at the first start, for minutes; gloo's serves."""
    vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: None  # as attribute the name is torch itself


def limit_collectives(timeout_s: float) -> None:
    """Give every process group of this process this time limit, those that DeepSpeed has made for itself included.

    DeepSpeed makes them without one, and torch 2.13 then takes the backend's (gloo 30, NCCL 10 minutes), not that of
    the default group. torch has no public way to change it.
    """
    for group in distributed_c10d._world.pg_map:
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def own_partition(parameter: Any) -> Tensor:
    """This rank's part of a ZeRO-3 parameter."""
    part: Tensor = parameter.ds_tensor
    return part


def gather_small_parameters_again(engine: Any) -> None:
    """Drop the small parameters that ZeRO-3 keeps gathered, and gather them from their partitions; collective."""
    if whole := engine.optimizer.persistent_parameters:
        whole[0].partition(whole)
        whole[0].all_gather(whole)


def whole(weight: Any, device: torch.device) -> Tensor:
    """The weight itself, or the whole of one that ZeRO 3 has partitioned, gathered on every rank; collective.

    Ranks broadcast their partitions: gloo's all-gather would take as much memory again, and DeepSpeed's own gathering
    of several parameters as well.
    """
    if not hasattr(weight, "ds_tensor"):
        found: Tensor = weight
        return found
    own = own_partition(weight)
    partitions = torch.empty((dist.get_world_size(), own.numel()), dtype=own.dtype, device=device)
    for rank, partition in enumerate(partitions):
        if rank == dist.get_rank():
            partition.copy_(own)
        dist.broadcast(partition, rank)
    return partitions.view(-1)[: weight.ds_numel].view(weight.ds_shape)


class DeviceMemory:
    """What a rank has on its device beside passes, which leaves it in two steps and comes back in one.

    DeepSpeed's `offload_states` moves all of it for ZeRO 1 and 2. For ZeRO 3 it takes no optimiser but its own, and
    mixes up partitions if a parameter is frozen or has another learning rate; there it moves gradients only.
    """

    def __init__(self, engine: Any, zero_stage: int, device: torch.device) -> None:
        self._engine, self._zero_stage, self._host = engine, zero_stage, HostCopies(device)
        self._partitions_away = False

    def states_leave(self) -> None:
        """Move optimiser state, float32 weights and gradients to host memory."""
        if self._zero_stage == 0:
            self._engine.zero_grad()
            self._host.leave(optimizer_state(self._engine.optimizer))
            return
        zero = self._engine.optimizer
        if self._zero_stage == 3:
            self._engine.offload_states(include=[_State.lp_grads, _State.contiguous_grad_buffer])
            self._host.leave({f"float32 {i}": flat for i, flat in enumerate(zero.fp32_partitioned_groups_flat)})
        else:
            self._engine.offload_states(include=[_State.hp_params, _State.lp_grads])
        self._host.leave(optimizer_state(zero.optimizer))

    def weights_leave(self) -> None:
        """Move weights to host memory; the states have left before."""
        parameters = dict(self._engine.module.named_parameters())
        if self._zero_stage == 0:
            self._host.leave(parameters)
            return
        frozen = {name: parameter for name, parameter in parameters.items() if not parameter.requires_grad}
        if self._zero_stage < 3:
            self._engine.offload_states(include=[_State.lp_params])
            self._host.leave(frozen)
            return
        zero = self._engine.optimizer
        zero.empty_partition_cache()
        self._host.leave({name: own_partition(parameter) for name, parameter in frozen.items()})
        self._host.leave({"partitions": zero.lp_param_buffer})
        zero.fp16_partitioned_groups_flat.clear()
        self._partitions_moved()
        self._partitions_away = True

    def all_comes_back(self) -> None:
        """Undo both."""
        self._host.come_back()
        if self._partitions_away:
            self._engine.optimizer._set_fp16_partitioned_groups_flat()
            self._partitions_moved()
            self._partitions_away = False
        if self._zero_stage:
            self._engine.reload_states()

    def _partitions_moved(self) -> None:
        """Point the trained parameters' partitions to where the buffer is that holds them all."""
        zero = self._engine.optimizer
        for partition, offset, length in get_mapping_to_flat_buffer(zero._get_parameter_partitions()):
            partition.data = zero.lp_param_buffer.narrow(0, offset, length)


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
