"""Video search: generated videos in which a coloured shape is shown for a second, then another; find the second.

Every record is a pure function of (seed, split, index). Train and held-out are disjoint: a sequence of shapes belongs
to the split that its own content hashes to.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ral_system.config.schema import VideoSearchConfig
from ral_system.data.visual_search import COLOURS, SHAPES, Cell, draw_shape
from ral_system.types import Split

FRAMES_PER_S = VideoSearchConfig.FRAMES_PER_S
FRAME_PX = 56
MAX_SECONDS = len(COLOURS) * len(SHAPES)
"""No shape is shown twice in the same colour, so that there is one answer."""
KINDS = ("when", "what")

_HELD_OUT_SHARE = 5  # one sequence in five


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video with one question. `thought` names the second that the answer follows from."""

    index: int
    split: Split
    kind: str
    question: str
    thought: str
    answer: str
    caption_question: str
    """Names seconds in random order."""
    caption: str
    """Every such second with what it shows, in the order asked for."""
    search_question: str
    """Names what is shown, in random order."""
    search: str
    """Every such thing with its second: the way back from content to time."""
    frames: np.ndarray
    """uint8 [FRAMES_PER_S · seconds, FRAME_PX, FRAME_PX, 3]"""


@dataclass(frozen=True, slots=True)
class VideoSearch:
    """The generator of videos that last `seconds`."""

    seed: int
    seconds: int
    described: int = MAX_SECONDS
    """Seconds that a caption names at most, and things that it looks for."""

    def __post_init__(self) -> None:
        if not 2 <= self.seconds <= MAX_SECONDS:
            raise ValueError(f"seconds must be 2..{MAX_SECONDS}, got {self.seconds}")

    def record(self, split: Split, index: int) -> VideoRecord:
        """The `index`-th record of `split`; question kinds take turns. Seconds are counted from 1."""
        rng = np.random.default_rng([self.seed, index, 0 if split == "train" else 1])
        shown = self._shown(rng, split)
        kind, at = KINDS[index % len(KINDS)], int(rng.integers(self.seconds))
        cell, second = shown[at], str(at + 1)
        described, sought = (rng.permutation(self.seconds)[: self.described].tolist() for _ in range(2))
        return VideoRecord(
            index=index,
            split=split,
            kind=kind,
            question=f"where is the {cell.words} ?" if kind == "when" else f"what is at {second} ?",
            thought=f"{cell.words} {second}" if kind == "when" else f"{second} {cell.words}",
            answer=second if kind == "when" else cell.words,
            caption_question=f"describe {' '.join(str(i + 1) for i in described)}",
            caption=" ".join(f"{i + 1} {shown[i].words}" for i in described),
            search_question=f"find {' '.join(shown[i].words for i in sought)}",
            search=" ".join(f"{shown[i].words} {i + 1}" for i in sought),
            frames=np.stack([frame for one in shown for frame in [draw_shape(one, FRAME_PX, rng)] * FRAMES_PER_S]),
        )

    def _shown(self, rng: np.random.Generator, split: Split) -> list[Cell]:
        """A different shape or colour every second."""
        every = [Cell(colour, shape) for colour in COLOURS for shape in SHAPES]
        while True:
            shown = [every[i] for i in rng.permutation(len(every))[: self.seconds]]
            content = ";".join(cell.words for cell in shown)
            held_out = hashlib.sha256(content.encode()).digest()[0] % _HELD_OUT_SHARE == 0
            if held_out == (split == "held_out"):
                return shown
