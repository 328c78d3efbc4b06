"""What computes attention policies and their gradients, a block of rows at a time."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from ral_system.attention.chunked import ChunkedKernels
from ral_system.config.choices import Backend


class Kernels(Protocol):
    """Forward and backward of blocks of rows over the keys of one call."""

    def rows_per_block(self, query_heads: int) -> int:
        """Number of rows to pass at a time."""

    def policy(self, query_RHD: Tensor, rows_R: Tensor) -> tuple[Tensor, Any]:
        """p [R, T] or [H, R, T] of a block of rows, and what their `gradient` needs."""

    def gradient(self, block: Any, slopes: Tensor, key_gradient_KTD: Tensor) -> Tensor:
        """Gradient of the block's query rows [R, H, D], from ∂D/∂p; adds the keys' share to `key_gradient`."""


def open_kernels(backend: Backend, key: Tensor, **options: Any) -> Kernels:
    """The kernels of a backend over the keys of one call. Raises ValueError for a backend that is not there."""
    check_backend(backend)
    installed = find_spec("triton") is not None
    if backend == "triton" and not installed:
        raise ValueError("backend='triton' needs the package triton; install it or use backend='chunked'")
    fits = key.is_cuda and key.dtype != torch.float64 and key.shape[-1] <= 256
    if backend == "chunked" or (backend == "auto" and not (fits and installed)):
        return ChunkedKernels(key, **options)
    from ral_system.attention.fused import FusedKernels

    return FusedKernels(key, **options)


def check_backend(backend: Backend) -> None:
    """Raise ValueError for a name that is not one."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend={backend!r}; known: {', '.join(get_args(Backend))}")


def blocks(query_RHD: Tensor, kernels: Kernels) -> list[slice]:
    """Rows to pass at a time."""
    size = kernels.rows_per_block(query_RHD.shape[1])
    return [slice(i, i + size) for i in range(0, len(query_RHD), size)]
