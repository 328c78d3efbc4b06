"""What a vLLM model holds, under the names that were published: the proof that an update arrived.

vLLM renames and fuses parameters (q, k, v into one matrix), pads vocabularies, and on CPU packs linear weights into
oneDNN's own layout and drops the original. All of it is undone here from the engine's memory; a packed weight is read
by multiplying the identity with it, which is exact. Knows vLLM's conventions but imports nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ral_system.sync.manifest import digest_array, from_host, to_host
from ral_system.types import TensorDigest, WeightManifest, Weights


def held_manifest(model: Any, weights: Weights) -> WeightManifest:
    """The manifest of what `model` computes with, for comparison with `weights.manifest`.

    A tensor that is numerically equal to the received one (after rounding to the engine's dtype; -0 equals 0) gets the
    digest of the received bytes, any other the digest of the engine's. A published tensor that the engine has no place
    for is left out; an engine parameter that nothing published fills is added as `engine:<its name>`.
    """
    reader = _Reader(model, {name: array.shape for name, array in weights.arrays.items()})
    tensors: dict[str, TensorDigest] = {}
    for name, array in weights.arrays.items():
        dtype = weights.manifest.tensors[name].dtype
        received = from_host(array, dtype)
        readings = list(reader.read(name))
        different = [held for held in readings if not _same_values(held, received)]
        if different:
            tensors[name] = digest_array(*to_host(different[0].to(received.dtype)))
        elif readings:
            tensors[name] = digest_array(array, dtype)
    for name, parameter in reader.unread():
        tensors[f"engine:{name}"] = digest_array(*to_host(parameter))
    return WeightManifest(weights.manifest.version, tensors)


def received_manifest(weights: Weights) -> WeightManifest:
    """The manifest of the bytes that reached this process, whatever the engine made of them."""
    dtypes = {name: digest.dtype for name, digest in weights.manifest.tensors.items()}
    tensors = {name: digest_array(array, dtypes.get(name)) for name, array in weights.arrays.items()}
    return WeightManifest(weights.manifest.version, tensors)


class _Reader:
    """Finds published tensors inside a vLLM model. `shapes`: published name → published shape."""

    def __init__(self, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        self._parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self._map_name = model.hf_to_vllm_mapper.map_name
        self._packed = {fused: members for fused, members in model.packed_modules_mapping.items() if len(members) > 1}
        self._shapes = shapes
        self._read_names: set[str] = set()

    def read(self, name: str) -> Iterator[Tensor]:
        """Every copy that the engine holds: the parameter, and what its linear layer multiplies with."""
        engine_name, first_row = self._locate(name)
        if engine_name not in self._parameters:
            return
        self._read_names.add(engine_name)
        shape = self._shapes[name]
        parameter = self._parameters[engine_name]
        copies = [parameter] if parameter.numel() else []
        module_name, _, leaf = engine_name.rpartition(".")
        packed_linear = getattr(self._modules[module_name], "cpu_linear", None)
        if leaf == "weight" and packed_linear is not None:
            identity = torch.eye(shape[1], dtype=parameter.dtype)
            copies.append(packed_linear(identity, parameter, None).T)
        for copy in copies:
            yield copy[first_row : first_row + shape[0]] if shape else copy

    def unread(self) -> Iterator[tuple[str, Tensor]]:
        """Engine parameters that no call of `read` found, tied ones once."""
        seen = {id(self._parameters[name]) for name in self._read_names}
        for name, parameter in self._parameters.items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def _locate(self, name: str) -> tuple[str, int]:
        """The engine's parameter that holds a published tensor, and the row it starts at."""
        for fused, members in self._packed.items():
            for member in members:
                if f".{member}." in name:
                    rows = 0
                    for earlier in members[: members.index(member)]:
                        rows += self._shapes[name.replace(f".{member}.", f".{earlier}.")][0]
                    return self._map_name(name.replace(f".{member}.", f".{fused}.")), rows
        return self._map_name(name), 0


def _same_values(held: Tensor, received: Tensor) -> bool:
    return held.shape == received.shape and torch.equal(held.detach().cpu(), received.to(held.dtype))


def as_tensors(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Published arrays as tensors, one at a time, in published order."""
    for name, array in weights.arrays.items():
        yield name, from_host(np.asarray(array), weights.manifest.tensors[name].dtype)
