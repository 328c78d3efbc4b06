"""The contract between text and media: how many tokens of a prompt stand for each picture and video, and which.

It is told from references alone, without pixels, and checked wherever prompts are made, sent and packed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ral_system.attention.provenance import IMAGE_TYPE, VIDEO_TYPE, Grid
from ral_system.data.pixel_budget import PixelBudget
from ral_system.types import Media


class VisualTokens:
    """Of one model, by its Hugging Face processor."""

    def __init__(self, processor: Any) -> None:
        images = processor.image_processor
        self.ids: dict[str, int] = {"image": processor.image_token_id, "video": processor.video_token_id}
        """Token that stands for each kind of media."""
        self._step = images.temporal_patch_size
        self._budget = PixelBudget(
            images.patch_size * images.merge_size, images.size["shortest_edge"], images.size["longest_edge"]
        )

    @property
    def token_pixels(self) -> int:
        """That one visual token stands for."""
        return self._budget.factor**2

    @property
    def least_pixels(self) -> int:
        """Of a picture, by the processor."""
        return self._budget.min_pixels

    @property
    def most_pixels(self) -> int:
        """The same."""
        return self._budget.max_pixels

    def grid(self, media: Media) -> Grid:
        """Frames, rows and columns of visual tokens. The processor resizes pictures to its own bounds; frames are
        taken as they are. Raises DataError for sides that it cannot have.
        """
        factor = self._budget.factor
        if media.clip is not None:
            return -(-media.frames // self._step), media.height_px // factor, media.width_px // factor
        width, height = self._budget.size(media.width_px, media.height_px)
        return 1, height // factor, width // factor

    def count(self, media: Media) -> int:
        """Visual tokens."""
        frames, rows, columns = self.grid(media)
        return frames * rows * columns

    def problem(self, token_ids: Sequence[int], media: Sequence[Media]) -> str | None:
        """What is wrong with a sequence, if anything: its runs of media tokens must be its media, in order."""
        kind_of = {token: kind for kind, token in self.ids.items()}
        runs = [(kind_of[t], len(list(run))) for t, run in itertools.groupby(token_ids) if t in kind_of]
        expected = [(m.kind, self.count(m)) for m in media]
        if runs == expected:
            return None
        return f"has {_words(runs)}, but its media make {_words(expected)}"

    def collapsed(self, token_ids: Sequence[int]) -> list[int]:
        """One token for each run of media tokens, as an engine that expands placeholders itself wants it."""
        media = set(self.ids.values())
        return [t for t, run in itertools.groupby(token_ids) for t in ([t] if t in media else run)]


def token_types(token_ids: Tensor, visual: VisualTokens) -> Tensor:
    """int64, transformers' mm_token_type_ids: 1 on image tokens, 2 on those of videos, 0 on text."""
    return (token_ids == visual.ids["image"]) * IMAGE_TYPE + (token_ids == visual.ids["video"]) * VIDEO_TYPE


def _words(runs: Sequence[tuple[str, int]]) -> str:
    return " + ".join(f"{length} {kind} tokens" for kind, length in runs) or "none"
