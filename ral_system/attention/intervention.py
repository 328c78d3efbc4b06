"""Steering where a model looks, without training (AVAR, arXiv 2603.03825): more at pictures, less at the system turn.

With Z a head's logits, A = softmax(Z) and M the keys of a kind, at the chosen layers and heads

    weights:  A' ∝ A + a_img M_img ∘ A - a_sys M_sys ∘ A        each row renormalised
    logits:   A' = softmax(Z + a_img M_img ∘ Z - a_sys M_sys ∘ Z)      literally: a negative logit is made more negative

The first is a bias of log(1 + a) on the logits, the second a factor on the keys, so both run in the layer's own kernel.
Suffixes: B sequences, H query heads, K key heads, T keys, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Space = Literal["weights", "logits"]


@dataclass(frozen=True, slots=True)
class Intervention:
    """How to steer. 0 ≤ `image`, 0 ≤ `system` < 1 (ValueError); `layers` and `heads` by index, None for all."""

    image: float
    system: float
    space: Space = "weights"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what would turn weights negative."""
        if not (self.image >= 0 and 0 <= self.system < 1):
            raise ValueError(f"image={self.image} must be at least 0, and system={self.system} at least 0 and below 1")

    @property
    def active(self) -> bool:
        """Whether it changes anything; a forward pass is only handed one that does."""
        return self.image > 0 or self.system > 0

    def check_model(self, layers: int, heads: int) -> None:
        """Raise ValueError for a layer or head that the model does not have."""
        for name, chosen, count in (("layers", self.layers, layers), ("heads", self.heads, heads)):
            if wrong := [i for i in chosen or () if not 0 <= i < count]:
                raise ValueError(f"{name}={list(chosen or ())}: the model has {count} {name}, so no {wrong[0]}")

    def on(self, visual_BT: Tensor, system_BT: Tensor) -> Steering:
        """For one forward pass over keys of these kinds, bool [B, T]; later keys are of neither."""
        return Steering(self, visual_BT, system_BT)


@dataclass(frozen=True, slots=True)
class Steering:
    """An intervention on the keys of one forward pass: the keyword `steering` of a probeable model's forward."""

    intervention: Intervention
    visual: Tensor
    """bool [B, T]"""
    system: Tensor
    """bool [B, T]"""

    def acts_on(self, layer: int) -> bool:
        """Whether the layer is one of the chosen."""
        return self.intervention.layers is None or layer in self.intervention.layers

    def part(self, start: int, length: int) -> Steering:
        """On one of the sequences that are packed into one."""
        window = slice(start, start + length)
        return Steering(self.intervention, self.visual[:, window], self.system[:, window])

    def keys(self, key_BKTD: Tensor, query_heads: int) -> Tensor:
        """space=logits: the keys [B, H, T, D], scaled."""
        key_BHTD = key_BKTD.repeat_interleave(query_heads // key_BKTD.shape[1], dim=1)
        return key_BHTD * self._factor(key_BHTD)[..., None]

    def bias(self, key_BKTD: Tensor, query_heads: int) -> Tensor:
        """space=weights: what to add to the logits, [B, H, 1, T]."""
        return self._factor(key_BKTD[:, :1].expand(-1, query_heads, -1, -1)).log()[:, :, None]

    def _factor(self, key_BHTD: Tensor) -> Tensor:
        """1 + a_img M_img - a_sys M_sys at the chosen heads, else 1: [B, H, T]."""
        i, (_, heads, tokens, _) = self.intervention, key_BHTD.shape
        visual_BT, system_BT = (pad(m, (0, tokens - m.shape[1])).to(key_BHTD.dtype) for m in (self.visual, self.system))
        change_B1T = (i.image * visual_BT - i.system * system_BT)[:, None]
        chosen_H = torch.ones(heads, dtype=key_BHTD.dtype, device=key_BHTD.device)
        if i.heads is not None:
            chosen_H.zero_()[list(i.heads)] = 1.0
        return 1 + change_B1T * chosen_H[:, None]


@dataclass(frozen=True, slots=True)
class UngroupedHeads:
    """Stands in for an attention module whose keys have been given to every query head already."""

    is_causal: bool


def steered(
    module: Any, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any], steering: Steering
) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
    """(module, key, value, keywords) with which the layer's own attention gives the steered one."""
    heads = query.shape[1]
    if steering.intervention.space == "weights":
        return module, key, value, kwargs | {"position_bias": steering.bias(key, heads)}
    value = value.repeat_interleave(heads // value.shape[1], dim=1)
    return UngroupedHeads(getattr(module, "is_causal", True)), steering.keys(key, heads), value, kwargs
