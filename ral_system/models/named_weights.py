"""A model's weights under their Hugging Face names."""

from __future__ import annotations

import re

from torch import Tensor, nn

_ADAPTED = re.compile(r"\.(base_layer|lora_[AB]\.default)\.weight$")
_LAYER = re.compile(r"(.*?\.\d+)\.")


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, in the model's order; what modules share (tied embeddings) once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        found.setdefault(id(weight), (name, weight))
    return dict(found.values())


def layer_of(name: str) -> str:
    """Return the layer of a weight: `model.layers.3` for `model.layers.3.mlp.up_proj.weight`; outside layers, its name.

    A matrix and its adapters are together everywhere.
    """
    match = _LAYER.match(name)
    return match.group(1) if match else _ADAPTED.sub("", name)
