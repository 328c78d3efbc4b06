"""Which data type `torch.autocast` multiplies matrices in, by what the device has instructions for."""

from __future__ import annotations

import torch

from ral_system.config.choices import Autocast, Dtype

_IN_HARDWARE = ("avx512_bf16", "amx_bf16", "bf16")
"""Names that torch gives to instructions of CPUs; one is enough."""


def autocast_dtype(choice: Autocast, device: torch.device, dtype: Dtype) -> torch.dtype | None:
    """Data type that weights of `dtype` are multiplied in on `device`, or None for their own.

    Weights in bfloat16 are multiplied as they are, whatever the choice.
    """
    if dtype != "float32" or choice == "none":
        return None
    return torch.bfloat16 if choice == "bfloat16" or multiplies_bfloat16(device) else None


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies matrices of bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in _IN_HARDWARE)
