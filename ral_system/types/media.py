"""Pictures and videos by reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

MediaKind = Literal["image", "video"]

MARKS: Mapping[str, MediaKind] = {"<image>": "image", "<video>": "video"}
"""Where media stand in a question's text; without marks they come before it."""

MAX_MEDIA: Mapping[MediaKind, int] = {"image": 16, "video": 4}
"""In a prompt: rollout engines make room for as many."""


@dataclass(frozen=True, slots=True)
class VideoSampling:
    """How many frames stand for a video: `fps` a second within bounds, a multiple of `step`.

    Example: `VideoSampling(fps=1.0, max_frames=128, min_frames=4)`
    """

    fps: float
    max_frames: int
    min_frames: int
    step: int = 2
    """Frames that a model merges into one patch in time: 2 for Qwen's."""
    start_s: float = 0.0
    """Of the stretch that is looked at, from the video's first frame on."""
    end_s: float | None = None
    """None: to the video's end."""


@dataclass(frozen=True, slots=True)
class Clip:
    """What of a video is looked at.

    Example, two frames of ten seconds: `Clip(VideoSampling(0.2, 128, 2), times_s=(0.0, 9.97), duration_s=10.0)`
    """

    sampling: VideoSampling
    times_s: tuple[float, ...]
    """Of the sampled frames, from the video's first frame on."""
    duration_s: float
    """Of the stretch that is looked at."""

    @property
    def seconds_per_grid(self) -> float:
        """What Qwen2.5-VL's rotary positions count in: the time that one merged patch stands for, as qwen-vl-utils
        reckons it (duration / frames · step); to 8 significant bits, so that it is the same number in any precision.
        """
        per_frame = self.duration_s / len(self.times_s) or 1 / self.sampling.fps
        fraction, exponent = math.frexp(per_frame * self.sampling.step)
        return math.ldexp(round(fraction * 256), exponent - 8)


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or video by reference: what it is, not its pixels. The file lives in a `MediaStore` under `digest`.

    Example: `Media(digest="9f86d0…", width_px=84, height_px=84)`
    """

    digest: str
    """sha256 of the encoded file, hexadecimal."""
    width_px: int
    """As the model sees it."""
    height_px: int
    clip: Clip | None = None
    """Of a video; None: a picture."""

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Media:
        """From what `dataclasses.asdict` made of it, through JSON. Raises KeyError or TypeError for anything else."""
        clip = record["clip"]
        if clip is not None:
            clip = Clip(VideoSampling(**clip["sampling"]), tuple(clip["times_s"]), clip["duration_s"])
        return cls(str(record["digest"]), record["width_px"], record["height_px"], clip)

    @property
    def kind(self) -> MediaKind:
        """What it is."""
        return "image" if self.clip is None else "video"

    @property
    def frames(self) -> int:
        """1 of a picture."""
        return 1 if self.clip is None else len(self.clip.times_s)
