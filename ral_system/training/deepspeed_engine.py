"""One ZeRO rank on DeepSpeed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from packaging import version
from torch import Tensor
from transformers.integrations import HfDeepSpeedConfig

from ral_system.algorithms.token_read import TokenRead
from ral_system.attention.read import AttentionRead
from ral_system.attention.sequence import SequenceRanks
from ral_system.batches.collate import TensorBatch
from ral_system.config.learner import DeepSpeedLearnerConfig
from ral_system.errors import CheckpointError, SetupError
from ral_system.models.host_copies import give_back_free_memory
from ral_system.models.named_weights import named_weights
from ral_system.models.policy import PolicyModel, PolicyOutput
from ral_system.training import deepspeed_internals as internals
from ral_system.training.optim import OptimSettings, adamw, parameter_groups, set_rates
from ral_system.types import Held

_SHARES_BUFFERS = "0.19.8"
"""First DeepSpeed whose `zero.Init` leaves buffers, such as rotary frequencies, in float32."""

internals.reduce_by_gloo_on_cpu()


class DeepSpeedEngine:
    """ZeRO 0-3 over the ranks of the default process group (environment variables RANK, WORLD_SIZE, MASTER_*).

    Gradients are summed over shards of a batch, since loss shares already carry global denominators. DeepSpeed averages
    over ranks, so each share is multiplied by their number first, and divided by the number of ranks that compute
    the same share.

    `start_timeout_s` bounds the meeting of the ranks; from the end of the construction on, every wait for each other
    has the limit `config.collective_timeout_s`.
    """

    def __init__(
        self,
        policy: PolicyModel,
        settings: OptimSettings,
        config: DeepSpeedLearnerConfig,
        device: torch.device,
        start_timeout_s: float,
    ) -> None:
        self.device = device
        _meet(device, start_timeout_s)
        if config.sequence_parallel > 1:
            policy.share(_sequence_group(config.sequence_parallel))
        self._settings = settings
        self._updates = 0
        if config.gradient_checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._groups = parameter_groups(policy, settings.rate_factors)
        self._engine, *_ = deepspeed.initialize(
            model=policy.to(device),  # which moves buffers: DeepSpeed leaves those of shared-out models where they are
            optimizer=adamw(self._groups, settings),
            config=_deepspeed_config(settings, config),
            dist_init_required=False,
        )
        internals.read_weights_only(self._engine)
        self._zero_stage = config.zero_stage
        self._memory = internals.DeviceMemory(self._engine, config.zero_stage, device)
        self.policy: PolicyModel = self._engine.module
        internals.limit_collectives(config.collective_timeout_s)

    def forward(
        self, batch: TensorBatch, reads: Sequence[AttentionRead] = (), tokens: TokenRead | None = None
    ) -> PolicyOutput:
        return self._engine(batch.to(self.device), reads, tokens)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        sequence = self.policy.sequence
        shards = torch.distributed.get_world_size() // (1 if sequence is None else sequence.size)
        self._engine.backward(loss * shards, scale_wrt_gas=False)

    def step(self) -> float:
        set_rates(self._engine.optimizer, self._groups, self._settings.rate(self._updates))
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None] if self._zero_stage == 0 else []
        norm = torch.nn.utils.get_total_norm(gradients)  # DeepSpeed clips by it without ZeRO, but does not tell it
        self._engine.step()
        self._updates += 1
        told = self._engine.get_global_grad_norm()
        return float(norm if told is None else told)

    def learning_rate(self) -> float:
        return self._settings.rate(max(0, self._updates - 1))

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        on_device = values.to(self.device)
        torch.distributed.all_reduce(on_device)
        return on_device

    def trained_weights(self) -> Mapping[str, Tensor]:
        trained: dict[str, Any] = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        return trained if self._zero_stage < 3 else {name: internals.own_partition(p) for name, p in trained.items()}

    def weights_replaced(self) -> None:
        if self._zero_stage == 3:
            internals.gather_small_parameters_again(self._engine)

    def hold(self, held: Held) -> None:
        if held < Held.ALL:
            self._memory.states_leave()
        if held < Held.WEIGHTS:
            self._memory.weights_leave()
        if held is Held.ALL:
            self._memory.all_comes_back()
        give_back_free_memory(self.device)

    def weights(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for name, weight in named_weights(self.policy.model).items():
            if name in names:
                yield name, internals.whole(weight, self.device)

    def save(self, folder: Path) -> None:
        state = {"updates": self._updates}
        self._engine.save_checkpoint(str(folder), tag="state", client_state=state, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        path, client_state = self._engine.load_checkpoint(str(folder), tag="state", load_module_strict=False)
        if path is None:
            raise CheckpointError(f"{folder}: no DeepSpeed state for this rank; was it saved with other ranks?")
        self._updates = client_state["updates"]


@contextmanager
def loading_by_shards(
    settings: OptimSettings, config: DeepSpeedLearnerConfig, device: torch.device, timeout_s: float
) -> Iterator[None]:
    """Let the ranks share out the model that transformers loads inside the block; every rank loads the same one.

    A module's weights are shared out when it is made, and gathered while rank 0 fills them from the model's files.
    """
    if (found := version.parse(deepspeed.__version__)) < version.parse(_SHARES_BUFFERS):
        raise SetupError(
            f"learner.zero_stage=3 needs DeepSpeed {_SHARES_BUFFERS}, and {found} is installed; pip install "
            f"'deepspeed>={_SHARES_BUFFERS}', or set zero_stage=2"
        )
    _meet(device, timeout_s)
    active = HfDeepSpeedConfig(_deepspeed_config(settings, config))  # transformers refers to it while it lives
    try:
        yield
    finally:
        del active


def _meet(device: torch.device, timeout_s: float) -> None:
    """Join the group of the learner ranks, unless this process has."""
    if torch.distributed.is_initialized():
        return
    try:
        deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_s),
            verbose=False,
        )
    except torch.distributed.DistNetworkError as error:
        raise SetupError(
            f"the learner ranks cannot meet at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            f" ({str(error).splitlines()[0]}); if the port is in use, the same command takes another one"
        ) from error


def _sequence_group(size: int) -> SequenceRanks:
    """This rank's group of `size` neighbours; every rank takes part in the making of each."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    groups = [torch.distributed.new_group(list(range(first, first + size))) for first in range(0, world_size, size)]
    return SequenceRanks(rank % size, size, groups[rank // size])


def _deepspeed_config(settings: OptimSettings, config: DeepSpeedLearnerConfig) -> dict[str, Any]:
    host = {"device": "cpu"}
    offloaded = {
        "none": {},
        "optimizer": {"offload_optimizer": host},
        "optimizer_and_parameters": {"offload_optimizer": host, "offload_param": host},
    }
    return {
        "train_micro_batch_size_per_gpu": 1,  # counts nothing: shares of the loss carry their own denominators
        "gradient_accumulation_steps": 1,  # boundaries are set by hand, update by update
        "gradient_clipping": settings.max_grad_norm,
        "zero_optimization": {
            "stage": config.zero_stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            **offloaded[config.offload],
        },
        "zero_force_ds_cpu_optimizer": False,  # that is a compiled operator; ours steps in host memory as well
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "data_types": {
            "grad_accum_dtype": "fp32",  # unset, gradients add up in the model's dtype
            "keep_in_fp32_modules": ["*"],  # buffers, such as rotary frequencies
        },
        "steps_per_print": 1 << 30,
    }
