"""What an engine holds, under the names that were published: the proof that an update arrived.

vLLM renames and fuses parameters (q, k, v into one matrix), pads vocabularies, and on CPU packs linear weights into
oneDNN's own layout and drops the original. All of it is undone here from the engine's memory; a packed weight is read
by multiplying the identity with it, which is exact. Knows vLLM's conventions but imports nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ral_system.types import TensorDigest, WeightManifest
from ral_system.weights.manifest import digest_array, to_host
from ral_system.weights.transfer.transfer import Received


def held_manifest(reader: ParameterReader, received: Received) -> WeightManifest:
    """The manifest of what an engine computes with, for comparison with `received.manifest`.

    A tensor that is numerically equal to the received one (after rounding to the engine's dtype; -0 equals 0) gets the
    digest of the received bytes, any other the digest of the engine's. A published tensor that the engine has no place
    for is left out; an engine parameter that nothing published fills is added as `engine:<its name>`.
    """
    tensors: dict[str, TensorDigest] = {}
    for name in received.manifest.tensors:
        if (identity := received.identity(name, list(reader.read(name)))) is not None:
            tensors[name] = identity
    for name, parameter in reader.unread():
        tensors[f"engine:{name}"] = digest_array(*to_host(parameter))
    return WeightManifest(received.manifest.version, tensors)


def received_manifest(received: Received) -> WeightManifest:
    """The manifest of the bytes that reached this process, whatever the engine made of them."""
    tensors = {name: digest_array(*to_host(tensor)) for name, tensor in received.tensors()}
    return WeightManifest(received.manifest.version, tensors)


class ParameterReader:
    """Reads published tensors from a model that keeps their names: transformers."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self._read_names: set[str] = set()

    def read(self, name: str) -> Iterator[Tensor]:
        """Every copy of the published tensor `name` that the engine holds."""
        if name in self._parameters:
            self._read_names.add(name)
            yield self._parameters[name]

    def unread(self) -> Iterator[tuple[str, Tensor]]:
        """Engine parameters that no call of `read` found, tied ones once."""
        seen = {id(self._parameters[name]) for name in self._read_names}
        for name, parameter in self._parameters.items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter


class VllmReader(ParameterReader):
    """Reads published tensors from a vLLM model. `shapes`: published name → published shape."""

    def __init__(self, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(model)
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        self._map_name = model.hf_to_vllm_mapper.map_name
        self._packed = {fused: members for fused, members in model.packed_modules_mapping.items() if len(members) > 1}
        self._shapes = shapes

    def read(self, name: str) -> Iterator[Tensor]:
        """The parameter (or its part of a fused one), and what its linear layer multiplies with on CPU."""
        engine_name, first_row = self._locate(name)
        shape = self._shapes[name]
        for parameter in super().read(engine_name):
            copies = [parameter] if parameter.numel() else []
            module_name, _, leaf = engine_name.rpartition(".")
            packed_linear = getattr(self._modules[module_name], "cpu_linear", None)
            if leaf == "weight" and packed_linear is not None:
                copies.append(packed_linear(torch.eye(shape[1], dtype=parameter.dtype), parameter, None).T)
            for copy in copies:
                yield copy[first_row : first_row + shape[0]] if shape else copy

    def _locate(self, name: str) -> tuple[str, int]:
        """The engine's parameter that holds a published tensor, and the row it starts at."""
        for fused, members in self._packed.items():
            for member in members:
                if f".{member}." in name:
                    earlier = (name.replace(f".{member}.", f".{m}.") for m in members[: members.index(member)])
                    first_row = sum(self._shapes[other][0] for other in earlier if other in self._shapes)
                    return self._map_name(name.replace(f".{member}.", f".{fused}.")), first_row
        return self._map_name(name), 0
