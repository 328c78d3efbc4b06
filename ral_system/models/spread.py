"""One frozen model over several GPUs of a process, with a block of consecutive decoder layers on each.

A pass goes from GPU to GPU, and one of them works at a time. Everything else is on the first GPU, where a pass begins
and ends: embedding, vision encoder, rotary tables, last norm and head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import PretrainedConfig, PreTrainedModel

from ral_system.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Share:
    """What one of the GPUs holds.

    Example: the second of two with a model of 80 layers, `Share(layers=range(39, 80), bytes=71_000_000_000)`
    """

    layers: range
    """Decoder layers, by depth."""
    bytes: int
    """Bytes of its weights; on the first GPU with those outside of layers."""


def check_layers(field: str, gpus: int, folder: Path, config: PretrainedConfig) -> None:
    """Raise ConfigError if a model has fewer decoder layers than its process has GPUs by this field."""
    if gpus > (layers := config.get_text_config().num_hidden_layers):
        raise ConfigError(
            f"{field}={gpus}: {folder} has {layers} decoder layers, which cannot be split over more GPUs; set it to "
            f"{layers} or less"
        )


def shares(model: PreTrainedModel, gpus: int) -> list[Share]:
    """Return what each of so many GPUs holds of a model, so the fullest holds as little as possible.

    There are at least as many layers as GPUs (`check_layers`).
    """
    layers = [_bytes(layer) for layer in model.get_decoder().layers]
    assert gpus <= len(layers), f"{len(layers)} layers for {gpus} GPUs"
    sums = list(accumulate(layers, initial=_bytes(model) - sum(layers)))
    counts = split(sums, gpus)
    ends = list(accumulate(counts))
    return [
        Share(range(end - count, end), sums[end] - (sums[end - count] if index else 0))
        for index, (count, end) in enumerate(zip(counts, ends, strict=True))
    ]


def split(sums: Sequence[int], parts: int) -> tuple[int, ...]:
    """Cut a row of layers into parts, and return the number of layers of each, so the largest part is smallest.

    `sums`[i] is the size of the first i layers, with what the first part holds beside layers; that part may have none.
    """
    best: list[tuple[float, tuple[int, ...]]] = [(size, (count,)) for count, size in enumerate(sums)]
    for _ in range(parts - 1):
        best = [
            min(
                (
                    (max(largest, sums[end] - sums[begin]), (*counts, end - begin))
                    for begin, (largest, counts) in enumerate(best[:end])
                ),
                default=(math.inf, ()),
            )
            for end in range(len(sums))
        ]
    return best[-1][1]


def spread(model: PreTrainedModel, devices: Sequence[torch.device | str]) -> None:
    """Place a model on one device, or on several as `shares` says, and let its passes go from one to the next.

    Layers are given tensors on their own device. Other inputs, such as `Packing`, stay as they are.
    """
    decoder, home = model.get_decoder(), torch.device(devices[0])
    if len(devices) == 1:
        model.to(home)
        return
    layers, decoder.layers = decoder.layers, nn.ModuleList()
    model.to(home)
    decoder.layers = layers
    for device, share in zip(devices, shares(model, len(devices)), strict=True):
        own = [layers[depth].to(device) for depth in share.layers]
        bring = _Bring(torch.device(device), own)
        for layer in own:
            layer.register_forward_pre_hook(bring, with_kwargs=True)
    layers[-1].register_forward_hook(lambda layer, positional, output: _to(output, home))


class _Bring:
    """Brings inputs to the device of a share's layers: hidden states, and once in a pass what every layer is given."""

    def __init__(self, device: torch.device, layers: Sequence[nn.Module]) -> None:
        self._device, self._layers = device, layers
        self._brought: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, layer: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the layer is called with, as a hook of its forward pass."""
        own = tree_map_only(Tensor, self._once, named)
        if layer is self._layers[-1]:
            self._brought = {}
        return _to(positional, self._device), own

    def _once(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._brought:  # holding the tensor keeps its id from others
            self._brought[id(tensor)] = tensor, tensor.to(self._device)
        return self._brought[id(tensor)][1]


def _to(values: Any, device: torch.device) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), values)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
