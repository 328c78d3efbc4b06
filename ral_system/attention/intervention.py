"""Steering where a model looks, without training (AVAR, arXiv 2603.03825): more at pictures, less at the system turn.

With Z a head's logits, A = softmax(Z) and M the keys of a kind, at the chosen layers and heads

    weights:  A' ∝ A + a_img M_img ∘ A - a_sys M_sys ∘ A        each row renormalised
    logits:   A' = softmax(Z + a_img M_img ∘ Z - a_sys M_sys ∘ Z)      literally: a negative logit is made more negative

The first adds log(1 + a) to the logits, as one more coordinate of query and key; the second multiplies keys. So both
run in the layer's own kernel, with its memory. Suffixes: B sequences, H query heads, K key heads, T keys, D head
dimension.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ral_system.config.choices import Space

_MORE = 8


@dataclass(frozen=True, slots=True)
class Intervention:
    """How to steer. 0 ≤ `image`, 0 ≤ `system` < 1 (ValueError); `layers` and `heads` by index, None for all."""

    image: float
    system: float
    space: Space = "weights"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse settings that would make weights negative."""
        if not (self.image >= 0 and 0 <= self.system < 1):
            raise ValueError(f"image={self.image} must be at least 0, and system={self.system} at least 0 and below 1")

    @property
    def active(self) -> bool:
        """Whether it changes anything; a forward pass only gets one that does."""
        return self.image > 0 or self.system > 0

    def check_model(self, layers: int, heads: int, linear: Collection[int] = ()) -> None:
        """Raise ValueError for a layer or head that the model does not have, and for a layer of linear attention."""
        for name, chosen, count in (("layers", self.layers, layers), ("heads", self.heads, heads)):
            if wrong := [i for i in chosen or () if not 0 <= i < count]:
                raise ValueError(f"{name}={list(chosen or ())}: the model has {count} {name}, so no {wrong[0]}")
        if wrong := [i for i in self.layers or () if i in linear]:
            softmax = ", ".join(str(i) for i in range(layers) if i not in linear)
            raise ValueError(
                f"layers={list(self.layers or ())}: layer {wrong[0]} has linear attention, which cannot be steered; "
                f"layers with softmax attention are {softmax}"
            )

    def on(self, visual_BT: Tensor, system_BT: Tensor) -> Steering:
        """Apply it to one forward pass over keys of these kinds, bool [B, T]; later keys are of neither kind."""
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
        """Return whether the layer is one of the chosen."""
        return self.intervention.layers is None or layer in self.intervention.layers

    def change(self, keys: int) -> Tensor:
        """a_img M_img - a_sys M_sys: float32 [B, T] over so many keys, 0 on those that came later."""
        i = self.intervention
        visual_BT, system_BT = (pad(mask, (0, keys - mask.shape[1])).float() for mask in (self.visual, self.system))
        return i.image * visual_BT - i.system * system_BT

    def chosen_heads(self, heads: int) -> Tensor:
        """float32 [H], 1 at the chosen heads."""
        if self.intervention.heads is None:
            return torch.ones(heads, device=self.visual.device)
        return torch.zeros(heads, device=self.visual.device).index_fill(
            0, torch.tensor(self.intervention.heads, device=self.visual.device), 1.0
        )


@dataclass(frozen=True, slots=True)
class HeadGroups:
    """Stands in for an attention module whose number of key heads may have changed."""

    is_causal: bool
    num_key_value_groups: int


def steered(
    query: Tensor, key: Tensor, value: Tensor, steering: Steering, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Query [B, H, ·, D], key and value [B, K, T, D] whose attention is the steered one in its first D values.

    They may be wider, and keys and values may belong to one query head each.
    """
    heads, dim = query.shape[1], query.shape[-1]
    change_BT, chosen_H = steering.change(key.shape[2]), steering.chosen_heads(heads)
    if steering.intervention.space == "weights":
        # zeros up to a width that fast kernels take
        query, key, value = (pad(t, (0, _MORE)) for t in (query, key, value))
        query[..., dim] = (chosen_H / scaling)[:, None].to(query.dtype)
        key[..., dim] = change_BT.log1p()[:, None].to(key.dtype)
    else:
        if steering.intervention.heads is not None:
            key, value = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (key, value))
            factor = 1 + change_BT[:, None] * chosen_H[:, None]
        else:
            factor = 1 + change_BT[:, None]
        key = (key * factor[..., None]).to(value.dtype)
    return query, key, value
