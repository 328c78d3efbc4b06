"""The kind of device that code runs for, and copies to it. Tensors on the meta device, which have no memory, stand for
those of another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_STOOD_FOR: ContextVar[str] = ContextVar("stood_for", default="cpu")


def device_kind(device: torch.device) -> str:
    """cpu or cuda; of the meta device what it stands for."""
    return _STOOD_FOR.get() if device.type == "meta" else device.type


@contextmanager
def meta_stands_for(kind: str) -> Iterator[None]:
    """Let the meta device stand for one of this kind inside the block."""
    token = _STOOD_FOR.set(kind)
    try:
        yield
    finally:
        _STOOD_FOR.reset(token)


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy to a device. To a GPU it goes through page-locked memory, so the copy waits in line with the GPU's work.

    A copy from other memory would keep Python waiting for all work that was queued before it.
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
