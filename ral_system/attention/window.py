"""Sliding windows: how far back the rows of a layer see.

Suffixes: T tokens, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """A row sees itself and the `size` - 1 tokens before it in its own sequence.

    Example, for sequences that share a prompt of two tokens: `Window(2, torch.tensor([0, 1, 2, 3, 2, 3]))`
    """

    size: int
    positions: Tensor
    """int64 [T], each token's position in its own sequence."""

    def reaches(self, rows: Tensor) -> Tensor:
        """bool [R, T]: keys that are not too far before a row, or that follow it."""
        return self.positions > self.positions[rows][:, None] - self.size

    def check(self, tokens: int, device: torch.device) -> None:
        """Raise ValueError for a window that does not fit so many tokens on this device."""
        at = self.positions
        if self.size < 1 or at.shape != (tokens,) or at.dtype != torch.int64 or at.device != device:
            raise ValueError(
                f"window must have a size of at least 1 and positions int64 [{tokens}] on {device}, got {self.size}, "
                f"{at.dtype} {list(at.shape)} on {at.device}"
            )
