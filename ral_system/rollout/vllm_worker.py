"""What this package adds to vLLM's worker, the process that holds a model or a rank's part of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from vllm.model_executor.layers import utils
from vllm.platforms import current_platform

from ral_system.errors import RalError
from ral_system.rollout.rank_failures import leave_failures
from ral_system.stacks import write_at_signal
from ral_system.types import EngineNames, WeightManifest
from ral_system.weights.engine_memory import EngineMemory, Held
from ral_system.weights.transfer.transfer import Offer, Setting, Transfer

leave_failures()
write_at_signal()


def _multiply_by_what_is_loaded(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


# On CPU, vLLM would pack each matrix for oneDNN and drop the original, which then could not be replaced in place.
utils.dispatch_cpu_unquantized_gemm = _multiply_by_what_is_loaded


def _convolve_by_what_is_loaded(convolve: Any) -> Any:
    """The convolution of linear attention, [C, 1, W], by a matrix [C, W] that is not packed for it."""

    def convolve_loaded(*, weight: torch.Tensor, **others: Any) -> torch.Tensor:
        return convolve(weight=weight.squeeze(1), **others | {"is_weight_packed": False})

    return convolve_loaded


if current_platform.is_cpu():  # where it is also packed with the others, and read so on some processors
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    for _name in ("_causal_conv1d_fwd_cpu", "_causal_conv1d_update_cpu"):
        setattr(gdn_attention, _name, _convolve_by_what_is_loaded(getattr(gdn_attention, _name)))


class WeightWorker:
    """Mixed into vLLM's worker by name; its methods are called in every rank's process."""

    rank: int
    model_runner: Any
    _ral_transfer: Transfer[Any]
    _ral_names: EngineNames
    _ral_memory: EngineMemory | None = None

    def ral_open(self, transfer: type[Transfer[Any]], setting: Setting, names: EngineNames) -> None:
        """Open the transfer. `setting.rank` counts this engine's first rank."""
        self._ral_names = names
        self._ral_transfer = transfer(replace(setting, rank=setting.rank + self.rank))

    def ral_held(self, published: WeightManifest) -> Held | RalError:
        """Return what this rank holds under the published names, or the error, which vLLM would replace by its own."""
        try:
            return self._ral_places(published).held(tuple(published.tensors), published.tensors)
        except RalError as error:
            return error

    def ral_load(self, offer: Offer) -> Held | RalError:
        """Replace weights in place; return what this rank now holds of the tensors sent, or why it holds nothing."""
        try:
            memory = self._ral_places(offer.manifest)
            return memory.load(self._ral_transfer.receive(offer), offer.manifest.tensors)
        except RalError as error:
            return error

    def _ral_places(self, published: WeightManifest) -> EngineMemory:
        if self._ral_memory is None:
            model = self.model_runner.get_model()
            self._ral_memory = EngineMemory.traced(model, model.load_weights, published.tensors, self._ral_names)
        return self._ral_memory
