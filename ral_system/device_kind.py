"""The kind of device that code runs for. Tensors on the meta device, which have no memory, stand for one of another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

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
