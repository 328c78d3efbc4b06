"""What this package adds to vLLM's worker, the process that holds a model or a rank's part of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from vllm.model_executor.layers import utils

from ral_system.types import WeightManifest
from ral_system.weights.engine_memory import EngineMemory, Held
from ral_system.weights.transfer.transfer import Offer, Setting, Transfer


def _multiply_by_what_is_loaded(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


# On CPU, vLLM would pack each matrix for oneDNN and drop the original, which then could not be replaced in place.
utils.dispatch_cpu_unquantized_gemm = _multiply_by_what_is_loaded


class WeightWorker:
    """Mixed into vLLM's worker by name; its methods are called in every rank's process."""

    rank: int
    model_runner: Any
    _ral_transfer: Transfer[Any]
    _ral_memory: EngineMemory | None = None

    def ral_open(self, transfer: type[Transfer[Any]], setting: Setting) -> None:
        """Open the transfer. `setting.rank` counts this engine's first rank."""
        self._ral_transfer = transfer(replace(setting, rank=setting.rank + self.rank))

    def ral_held(self, published: WeightManifest) -> Held:
        """What this rank holds under the published names."""
        return self._ral_places(published).held(tuple(published.tensors), published.tensors)

    def ral_load(self, offer: Offer) -> Held:
        """Replace weights in place; what this rank then holds of those that travelled."""
        memory = self._ral_places(offer.manifest)
        memory.write(self._ral_transfer.receive(offer))
        return memory.held(offer.names, offer.manifest.tensors)

    def _ral_places(self, published: WeightManifest) -> EngineMemory:
        if self._ral_memory is None:
            model = self.model_runner.get_model()
            self._ral_memory = EngineMemory.traced(model, model.load_weights, published.tensors)
        return self._ral_memory
