"""Pictures and videos by reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

MediaKind = Literal["image", "video"]

MARKS: Mapping[str, MediaKind] = {"<image>": "image", "<video>": "video"}
"""Marks that place media in a question's text; without marks media come before it."""

MAX_MEDIA: Mapping[MediaKind, int] = {"image": 16, "video": 4}
"""Most media of each kind in a prompt; rollout engines reserve room for as many."""


@dataclass(frozen=True, slots=True)
class VideoSampling:
    """Sampling of a video's frames: `fps` a second within bounds, a multiple of `step`.

    Example: `VideoSampling(fps=1.0, max_frames=128, min_frames=4)`
    """

    fps: float
    max_frames: int
    min_frames: int
    step: int = 2
    """Frames that a model merges into one patch in time."""
    start_s: float = 0.0
    """Start of the part that is used, from the video's first frame on."""
    end_s: float | None = None
    """End of the part that is used; None: the video's end."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Part of a video that is used.

    Example, two frames of ten seconds: `Clip(VideoSampling(0.2, 128, 2), times_s=(0.0, 9.97), duration_s=10.0)`
    """

    sampling: VideoSampling
    times_s: tuple[float, ...]
    """Times of the sampled frames, from the video's first frame on."""
    duration_s: float
    """Duration of the part that is used."""


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or video by reference: what it is, not its pixels. The file lives in a `MediaStore` under `digest`.

    Example: `Media(digest="9f86d0…", width_px=84, height_px=84)`
    """

    digest: str
    """sha256 of the encoded file, hexadecimal."""
    width_px: int
    """Width as the model sees it."""
    height_px: int
    clip: Clip | None = None
    """Frames of a video; None for a picture."""

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Media:
        """Read a medium from its `dataclasses.asdict`, also after JSON. Raises KeyError or TypeError for anything
        else."""
        clip = record["clip"]
        if clip is not None:
            clip = Clip(VideoSampling(**clip["sampling"]), tuple(clip["times_s"]), clip["duration_s"])
        return cls(str(record["digest"]), record["width_px"], record["height_px"], clip)

    @property
    def kind(self) -> MediaKind:
        """Kind of the medium."""
        return "image" if self.clip is None else "video"

    @property
    def frames(self) -> int:
        """Number of frames; 1 for a picture."""
        return 1 if self.clip is None else len(self.clip.times_s)


@dataclass(frozen=True, slots=True)
class View:
    """A rectangle of visual tokens: a picture, one of its tiles, or the frames that a model merges into one.

    Example: the right-hand one of two tiles, `View(rows=16, columns=16, box=(0.5, 0.0, 1.0, 1.0))`
    """

    rows: int
    columns: int
    frame: int = 0
    """Index in time, counted in frames as the language model sees them."""
    seconds: float = 0.0
    """Time since the video's first frame."""
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """Left, top, right and bottom edge in the medium, as fractions of its size."""
    line_end: bool = False
    """A token without a place in the picture follows each row."""

    @property
    def tokens(self) -> int:
        """Number of visual tokens, line ends included."""
        return self.rows * (self.columns + self.line_end)


@dataclass(frozen=True, slots=True)
class Layout:
    """The visual tokens that stand for one medium, view by view, each row by row.

    Example: a picture of 84 × 56 pixels at 28 pixels a token, `Layout("image", (View(rows=2, columns=3),))`
    """

    kind: MediaKind
    views: tuple[View, ...]
    separated: bool = False
    """Whether other tokens stand between the views; otherwise they are one run of tokens."""
    patches: int | None = None
    """Patches that the vision encoder sees, where this does not follow from the number of tokens."""

    @property
    def tokens(self) -> int:
        """Number of visual tokens."""
        return sum(view.tokens for view in self.views)

    @property
    def runs(self) -> tuple[int, ...]:
        """Lengths of the uninterrupted runs of visual tokens."""
        return tuple(view.tokens for view in self.views) if self.separated else (self.tokens,)

    @property
    def finest_grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens over the whole picture; tiles cover parts of it, and the finest decide."""
        rows = max(round(view.rows / (view.box[3] - view.box[1])) for view in self.views)
        columns = max(round(view.columns / (view.box[2] - view.box[0])) for view in self.views)
        return rows, columns

    def __str__(self) -> str:
        """Number of views, rows and columns, for example `3 × 16 × 16`; views of other sizes follow behind a plus."""
        sizes = groupby(f"{view.rows} × {view.columns}" + " and line ends" * view.line_end for view in self.views)
        return " + ".join(f"{len(list(run))} × {size}" for size, run in sizes)
