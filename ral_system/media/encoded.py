"""A picture or video from outside, not yet opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ral_system.types import MediaKind


@dataclass(frozen=True, slots=True)
class EncodedMedia:
    """An encoded picture or video: its bytes, or a file that holds them.

    Example: the first ten seconds of a film, `EncodedMedia("video", None, Path("/data/film.mp4"), end_s=10.0,
    name="video: film.mp4")`.
    """

    kind: MediaKind
    encoded: bytes | None
    path: Path | None
    start_s: float = 0.0
    """Start of the section of a video that is meant."""
    end_s: float | None = None
    """End of that section; None: the end of the video."""
    frames_per_s: float | None = None
    """Rate of the frames if `path` is a folder with one picture per frame; None: `path` is a file."""
    name: str = ""
    """Name in messages: the column, the place among several media there, and the file."""
