"""Videos whose frames stand apart in the prompt, each with its time written beside it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ral_system.families.qwen_vl.family import QwenVl
from ral_system.types import Layout, Media, View


class TimedFrames(QwenVl):
    """A family that replaces a video's placeholder by the frames that it merges, two by two, with their times."""

    @abstractmethod
    def time_of(self, times_s: Sequence[float]) -> float:
        """Time in seconds of a view, from those of the frames that it merges."""

    @abstractmethod
    def stamped(self, view: View) -> str:
        """The text of a view of a video: its visual tokens, what encloses them, and its time."""

    def expanded(self, media: Media) -> str:
        if media.clip is None:
            return super().expanded(media)
        return "".join(map(self.stamped, self.layout(media).views))

    def layout(self, media: Media) -> Layout:
        """Each view of a video is a run of its own, at the time that is written beside it."""
        layout = super().layout(media)
        if media.clip is None:
            return layout
        times_s, step = media.clip.times_s, self.frames_per_view
        views = [replace(v, seconds=self.time_of(times_s[v.frame * step :][:step])) for v in layout.views]
        return replace(layout, views=tuple(views), separated=True)

    def engine_media(self, media: Media, pixels: Any) -> Any:
        """A video's frames and their times: what vLLM takes for indices at one frame a second."""
        if media.clip is None:
            return pixels
        times_s = list(media.clip.times_s)
        return pixels, {
            "fps": 1.0,
            "total_num_frames": len(pixels),
            "frames_indices": times_s,
            "do_sample_frames": False,
        }
