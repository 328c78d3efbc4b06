"""The vision encoder, once per micro-batch whatever it holds, so ranks under ZeRO-3 gather the same parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from ral_system.attention.sequence import SequenceGroup, own_run
from ral_system.families.family import Encoded, Features, Occurrences

Streams = Callable[[Any], Sequence[Sequence[Tensor]]]
"""From an encoder's output to what the text model reads of it: once or several times, [tokens, E] of each medium."""


def encoded_media(model: Any, features: Features, sequence: SequenceGroup | None, streams: Streams) -> Encoded:
    """Encode each picture and video with a transformers model (without its head), in every stream.

    Pictures and videos go through it together. Without either, it sees one black patch, and none of that is used: a
    rank whose micro-batch is text alone takes part in what the others gather and reduce.
    """
    pixels = [features[name] for name in ("pixel_values", "pixel_values_videos") if name in features]
    grids = [features[name] for name in ("image_grid_thw", "video_grid_thw") if name in features]
    images = len(features.get("image_grid_thw", ()))
    if not features:
        pixels, grids = _black_patch(model)
    views = DealtViews(torch.cat(grids), model.visual.spatial_merge_size, sequence if features else None)
    found = model.get_video_features(views.own(torch.cat(pixels)), views.own_grids, return_dict=True)
    media = list(zip(*(views.of_media(stream) for stream in streams(found)), strict=True))
    if not features:
        return {"image": (tuple(stream[:0] for stream in media[0]),)}
    return {"image": tuple(media[:images]), "video": tuple(media[images:])}


def in_places(encoded: Encoded, occurrences: Occurrences) -> Encoded:
    """Return encodings place by place, by kind; without media, the piece without tokens that the encoder made."""
    if not occurrences:
        return encoded
    found: Encoded = {}
    for kind, i in occurrences:
        found[kind] = (*found.get(kind, ()), encoded[kind][i])
    return found


def _black_patch(model: Any) -> tuple[list[Tensor], list[Tensor]]:
    config, merge = model.config.vision_config, model.visual.spatial_merge_size
    device = next(model.visual.parameters()).device
    values = config.in_channels * config.temporal_patch_size * config.patch_size**2
    pixels = torch.zeros(merge**2, values, device=device)
    return [pixels], [torch.tensor([[1, merge, merge]], device=device)]


class DealtViews:
    """The pictures of media and frames of videos, dealt to ranks in runs of about equally many patches.

    None of them attends to another. A rank without any encodes the first, so it gathers and reduces what the
    others do, and hands over none of it. `grids` int64 [media, 3]: frames, rows and columns of patches.
    """

    def __init__(self, grids: Tensor, merge: int, sequence: SequenceGroup | None) -> None:
        self._sequence, self._media = sequence, (grids.prod(-1) // merge**2).tolist()
        self.own_grids = grids
        if sequence is None:
            return
        views = torch.cat([torch.ones_like(grids[:, :1]), grids[:, 1:]], dim=1).repeat_interleave(grids[:, 0], dim=0)
        patches = views.prod(-1)
        middle = 2 * patches.cumsum(0) - patches
        counts = (middle * sequence.size // (2 * patches.sum())).bincount(minlength=sequence.size).tolist()
        ends = [0, *patches.cumsum(0).tolist()]
        firsts = list(accumulate(counts, initial=0))
        self._lengths = [(ends[end] - ends[first]) // merge**2 for first, end in pairwise(firsts)]
        own = own_run(counts, sequence.rank) if counts[sequence.rank] else slice(0, 1)
        self.own_grids, self._patches = views[own], slice(ends[own.start], ends[own.stop])

    def own(self, pixels: Tensor) -> Tensor:
        """The rows of all patches that this rank encodes."""
        return pixels if self._sequence is None else pixels[self._patches]

    def of_media(self, found: Sequence[Tensor]) -> Sequence[Tensor]:
        """Gather the encodings of all ranks, medium by medium, from this rank's own: [tokens, E] each."""
        if self._sequence is None:
            return found
        own = torch.cat(tuple(found))[: self._lengths[self._sequence.rank]]
        return self._sequence.gather(own, self._lengths).split(self._media)
