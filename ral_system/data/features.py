"""From media to what a model's vision encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ral_system.media.store import MediaStore
from ral_system.types import Media

FRAMES_AS_THEY_ARE = {"do_sample_frames": False, "do_resize": False, "cap_pixels_per_frame": False}
"""Frames come sampled and resized from the store."""


@dataclass(frozen=True, slots=True)
class Features:
    """Of all pictures, and of all videos, each one behind the other."""

    pixel_values: Tensor | None = None
    """[patches, features]"""
    image_grid_thw: Tensor | None = None
    """int64 [images, 3], in patches before merging"""
    pixel_values_videos: Tensor | None = None
    video_grid_thw: Tensor | None = None
    """int64 [videos, 3]"""

    def to(self, device: torch.device | str) -> Features:
        """The same on another device."""
        tensors = (self.pixel_values, self.image_grid_thw, self.pixel_values_videos, self.video_grid_thw)
        return Features(*(None if t is None else t.to(device) for t in tensors))


class FeatureExtractor:
    """A model's own image and video processor on what a store holds."""

    def __init__(self, processor: Any, store: MediaStore) -> None:
        self._processor, self._store = processor, store

    def __call__(self, media: Sequence[Media]) -> Features:
        """Features of `media` in order; one that occurs again is processed once. Raises DataError."""
        pixels, grids = self._of_kind([m for m in media if m.clip is None], self._pictures, "")
        videos, video_grids = self._of_kind([m for m in media if m.clip is not None], self._videos, "_videos")
        return Features(pixels, grids, videos, video_grids)

    def _of_kind(self, media: Sequence[Media], process: Any, suffix: str) -> tuple[Tensor | None, Tensor | None]:
        unique = list(dict.fromkeys(media))
        if not unique:
            return None, None
        found = process(unique)
        grids = found["video_grid_thw" if suffix else "image_grid_thw"]
        patches = found[f"pixel_values{suffix}"].split(grids.prod(-1).tolist())
        order = [unique.index(one) for one in media]
        return torch.cat([patches[i] for i in order]), grids[order]

    def _pictures(self, media: Sequence[Media]) -> Any:
        return self._processor.image_processor(images=[self._store.open(m) for m in media], return_tensors="pt")

    def _videos(self, media: Sequence[Media]) -> Any:
        frames = [self._store.frames(m) for m in media]
        return self._processor.video_processor(
            videos=frames, input_data_format="channels_last", return_tensors="pt", **FRAMES_AS_THEY_ARE
        )
