"""Parts of a benchmark: questions with media, the score of an answer, and the figures that its authors report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ral_system.errors import DataError
from ral_system.types import MARKS, MediaKind


@dataclass(frozen=True, slots=True)
class MediaFile:
    """An encoded picture or video, or the stretch of a video that a question is about.

    Example: `MediaFile("video", path=Path("/mvbench/video/sta/sta_video/a.mp4"), start_s=2.0, end_s=9.5)`
    """

    kind: MediaKind
    encoded: bytes | None = None
    """Bytes, if the benchmark's table holds them; else `path` is set."""
    path: Path | None = None
    """A file, or with `frames_per_s` a folder of the video's frames in the order of their names."""
    start_s: float | None = None
    """Start of the part of the video that the question is about; None: its beginning."""
    end_s: float | None = None
    frames_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A question with everything that its score needs.

    Example: `Item("direct_attributes/sa_1", "direct_attributes", "<image>\\nWhat colour …?", (MediaFile(…),), ("A",),
    options=("red", "blue"))`
    """

    id: str
    """Id, unique in the benchmark and stable between readings."""
    category: str
    """Row in the table of results."""
    text: str
    """The prompt as the benchmark's authors word it, with one mark (`types.MARKS`) for each of the media."""
    media: tuple[MediaFile, ...]
    """Media in the order of the marks."""
    references: tuple[str, ...]
    """References: a letter, words, or people's answers."""
    options: tuple[str, ...] = ()
    """Options without their letters; A is the first."""
    part: str = ""
    """Parts that are summed up separately, in addition to the categories."""
    together: str = ""
    """Key shared by questions that count together, such as both about a picture."""

    def __post_init__(self) -> None:
        for mark, kind in MARKS.items():
            marks, media = self.text.count(mark), sum(one.kind == kind for one in self.media)
            if marks != media:
                raise DataError(f"the text has {marks} {mark} for {media} media of this kind")


@dataclass(frozen=True, slots=True)
class BadItem:
    """A row that cannot be used. Example: `BadItem("val.json:17", "image: a.jpg: no such file below /data/vizwiz")`."""

    id: str
    reason: str


Scored = Sequence[tuple[Item, float]]
"""Items with the score of their answers, all of them or a part of the benchmark."""


class Benchmark(Protocol):
    """What a benchmark's file defines."""

    ABOUT: str
    """What it asks about, in a few words."""
    FILES: str
    """What its folder holds."""

    def items(self, folder: Path) -> Iterator[Item | BadItem]:
        """Every question below the folder, in the released order. Raises DataError for a file that is missing."""

    def score(self, item: Item, response: str) -> float:
        """Score the final answer, without its tags, in [0, 1]."""

    def summary(self, scores: Scored) -> dict[str, float]:
        """The headline figure under `score` first, then its parts. Percent unless the benchmark counts in points. A sum
        is left out if one of its parts was not asked.
        """
