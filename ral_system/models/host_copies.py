"""Host memory for tensors that leave their device for a while."""

from __future__ import annotations

import gc
from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopies:
    """Moves tensors of a device to host memory and back, in place: references to a tensor stay valid.

    Host memory is page-locked if the device is a GPU, and stays reserved: locking it again takes longer than the copy.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: dict[str, Tensor] = {}
        self._away: dict[str, Tensor] = {}

    def leave(self, tensors: Mapping[str, Tensor]) -> None:
        """Move those to host memory that are on the device. A name stays that of one tensor, or of its successors."""
        moved = {n: t for n, t in tensors.items() if n not in self._away and t.device.type == self._device.type}
        for name, tensor in moved.items():
            copy = self._copies.get(name)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                self._copies[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._copies[name].copy_(tensor.detach(), non_blocking=True)
        self._wait()
        for name, tensor in moved.items():
            tensor.data = self._copies[name]
        self._away |= moved

    def come_back(self) -> None:
        """Move everything to the device again."""
        for tensor in self._away.values():
            tensor.data = tensor.data.to(self._device, non_blocking=True)
        self._wait()
        self._away = {}

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def give_back_free_memory(device: torch.device) -> None:
    """Return what torch keeps for later allocations to the device, where other processes can use it."""
    if device.type == "cuda":
        gc.collect()  # of cycles that hold tensors
        torch.cuda.ipc_collect()
        torch.cuda.empty_cache()
