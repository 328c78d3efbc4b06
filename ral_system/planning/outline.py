"""Runs real code on floating-point tensors that have a shape and no data (outlines); integer tensors stay real.

This finds the peak memory of a pass over a micro-batch without the device and without the model's weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ral_system.attention.sequence import SequenceGroup

OUTLINE = torch.device("meta")

_aten = torch.ops.aten
_BY_MASK = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)


class Outlines(TorchDispatchMode):
    """Code inside the block computes shapes, and `peak_bytes` is the peak memory of the tensors that it creates.

    Integer and boolean tensors stay real, on the CPU, wherever the code puts them, because shapes depend on them. They
    are not counted. A scalar that is read from an outline is 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = self.held_bytes = 0
        self._counted: dict[int, weakref.ref[Any]] = {}
        self._constructors = _Constructors()

    def __enter__(self) -> Outlines:
        self._constructors.__enter__()
        return cast(Outlines, super().__enter__())

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        self._constructors.__exit__(*reason)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, on shapes if an argument is an outline."""
        kwargs = kwargs or {}
        if func in _BY_MASK:
            args = (args[0], _without_masks(args[1]), *args[2:])
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        outlined = [tensor for tensor in tensors if tensor.is_meta]
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": OUTLINE if outlined else torch.device("cpu")}
        if outlined and func is _aten._local_scalar_dense.default:
            return 0.0 if args[0].is_floating_point() else 0
        if outlined:
            if len(outlined) < len(tensors):
                args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(OUTLINE), (args, kwargs))
            return self._count(*_outline(func, args, kwargs, outlined))
        found = func(*args, **kwargs)
        return self._count(tree_map_only(Tensor, lambda t: t.to(OUTLINE) if t.is_floating_point() else t, found), set())

    def _count(self, found: Any, inputs: Collection[int]) -> Any:
        for tensor in _tensors((found,)):
            if not tensor.is_meta:
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._counted or key in inputs:
                continue
            self._counted[key] = weakref.ref(storage, partial(self._free, key, size))
            self.held_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        return found

    def _free(self, key: int, size: int, _: Any) -> None:
        del self._counted[key]
        self.held_bytes -= size


class OutlinedRanks(SequenceGroup):
    """One rank of a group, for planning: exchanges return tensors of the right shape, without data."""

    def exchange(self, x: Tensor, received: Sequence[int], sent: Sequence[int]) -> Tensor:
        """Return an outline of the rows that this rank receives."""
        return cast(Tensor, _Exchange.apply(x.contiguous(), sum(received)))

    def total(self, x: Tensor) -> Tensor:
        """Return an outline of this shape."""
        return x.clone()


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int) -> Tensor:
        ctx.rows = len(x)
        return x.new_empty((rows, *x.shape[1:]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_empty((ctx.rows, *gradient.shape[1:])), None


class _Constructors(TorchFunctionMode):
    """Keeps tensors that are constructed from values: the meta device would drop the values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == OUTLINE:
            return func(*args, **{**kwargs, "device": "cpu"})
        return func(*args, **kwargs)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among an operation's arguments or results, also those in a list."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (part for part in value if isinstance(part, Tensor))


_made: dict[Any, tuple[Sequence[int], Sequence[int], torch.dtype]] = {}
"""Shape, stride and data type of an operation's result, by the operation and the shapes of its arguments."""


def _outline(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outlined: Sequence[Tensor]
) -> tuple[Any, Collection[int]]:
    """Return the result of an operation on outlines, and the storages of its arguments.

    PyTorch infers shapes in Python, slowly, and layers and passes repeat each other. Results with a storage of their
    own are cached.
    """
    key = (func, _shapes(args), _shapes(kwargs.items()))
    if (known := _made.get(key)) is not None:
        return torch.empty_strided(known[0], known[1], dtype=known[2], device=OUTLINE), ()
    found, inputs = func(*args, **kwargs), {t.untyped_storage()._cdata for t in outlined}
    if isinstance(found, Tensor) and not func._schema.is_mutable:
        storage = found.untyped_storage()
        if storage._cdata not in inputs and storage.nbytes() == found.nbytes:
            _made[key] = found.shape, found.stride(), found.dtype
    return found, inputs


def _shapes(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return arguments as a key, equal for calls whose results have the same shape."""
    return tuple(
        (value.shape, value.stride(), value.dtype)
        if isinstance(value, Tensor)
        else _shapes(value)
        if isinstance(value, (list, tuple))
        else (type(value), value)
        for value in values
    )


def _without_masks(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Replace masks by the positions where they are true, which determine the size of a result."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            found += index.nonzero(as_tuple=True)
        else:
            found.append(index)
    return found
