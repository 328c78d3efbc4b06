"""A model's weights under their Hugging Face names."""

from __future__ import annotations

from torch import Tensor, nn


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, in the model's order; what modules share (tied embeddings) once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        found.setdefault(id(weight), (name, weight))
    return dict(found.values())
