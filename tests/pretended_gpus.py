"""GPUs that a CPU pretends to be: tensors with numbers, which say that they lie on one, and refuse to meet those of
another.

Code under `pretended_gpus` computes real results on the CPU. An operation on tensors of several devices raises, as
CUDA's do; scalars and indices may be on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_aten = torch.ops.aten
_CPU = torch.device("cpu")
_TAKE_INDICES = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)
_OF_NUMBERS = (Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.tolist)
_IN_OPS = {
    Tensor.contiguous: _aten.contiguous,
    Tensor.copy_: _aten.copy_,
    Tensor.nonzero: _aten.nonzero,
    Tensor.__invert__: _aten.bitwise_not,
}
"""Methods that PyTorch does with the GPU's own library, and the operation in their place."""
_COPIES = (_aten._to_copy.default, _aten.copy_.default)


class OnGpu(Tensor):
    """A tensor on a pretended GPU; `held` has its numbers, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> OnGpu:
        found = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), dtype=held.dtype, device=device, storage_offset=0
        )
        found.held = held
        return found

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.device}, {self.held!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _OF_NUMBERS:
            return func(args[0].held)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            return _by_index(func, *args)
        func = _IN_OPS.get(func, func)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sends tensors that are made on a GPU there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretended_gpus(count: int) -> Iterator[None]:
    """Let PyTorch have so many GPUs inside the block."""
    with ExitStack() as pretended:
        pretended.enter_context(patch("torch.cuda.is_available", lambda: True))
        pretended.enter_context(patch("torch.cuda.device_count", lambda: count))
        pretended.enter_context(patch("torch.cuda._lazy_init", lambda: None))
        pretended.enter_context(_Mode())
        future = torch.__future__
        pretended.callback(
            future.set_overwrite_module_params_on_conversion, future.get_overwrite_module_params_on_conversion()
        )
        future.set_overwrite_module_params_on_conversion(True)  # parameters become ours, and not CPU ones changed
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda") asks for a copy that we see
        pretended.callback(torch._C._set_only_lift_cpu_tensors, before)
        yield


def _by_index(func: Any, tensor: Tensor, index: Any, *value: Any) -> Any:
    """Read or write at an index, which PyTorch does in C++ with the GPU's own library."""
    _one_device(func, [tensor, *(v for v in value if isinstance(v, Tensor)), *_on_gpus(index)])
    tensor_, index, value = tree_map_only(OnGpu, lambda t: t.held, (tensor, index, value))
    found = func(tensor_, index, *value)
    return OnGpu(found, tensor.device) if isinstance(found, Tensor) else found


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is _aten.is_pinned.default:
        return False
    if func is _aten._pin_memory.default:
        return args[0]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    asked = kwargs.get("device")
    device = _only_device(func, args, tensors) if func not in _COPIES else tensors[0].device
    if asked is not None:
        device = torch.device(asked)
        kwargs = {**kwargs, "device": _CPU}
    own = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, OnGpu)}
    args, kwargs = tree_map_only(OnGpu, lambda tensor: tensor.held, (args, kwargs))
    found = func(*args, **kwargs)
    if device.type == "cpu":
        return found
    there = torch.device(device.type, device.index or 0)
    return tree_map_only(Tensor, lambda t: own[id(t)] if id(t) in own else OnGpu(t, there), found)


def _only_device(func: Any, args: Any, tensors: list[Tensor]) -> torch.device:
    if func in _TAKE_INDICES:
        tensors = [args[0], *_on_gpus(args[1]), *args[2:3]]
    return _one_device(func, tensors)


def _on_gpus(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, OnGpu)]


def _one_device(func: Any, tensors: Sequence[Tensor]) -> torch.device:
    """Return the device of the tensors, or of those that are not scalars. Raises RuntimeError if they have several."""
    places = {tensor.device for tensor in tensors}
    if len(places) > 1:
        places = {tensor.device for tensor in tensors if tensor.dim()} or places
    if len(places) > 1:
        raise RuntimeError(f"{func}: expected all tensors on one device, found {sorted(map(str, places))}")
    return places.pop() if places else _CPU
