"""Video search: generated videos that show another coloured shape or handwritten digit every second.

Every record is a pure function of (seed, split, index). Train and held-out are disjoint: a sequence of things belongs
to the split that its own content hashes to, and each handwritten digit image serves one split only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ral_system.config.data import VideoSearchConfig
from ral_system.tasks.cells import COLOURS, DIGITS, HELD_OUT_SHARE, LETTERS, SHAPES, Cell, draw_alone
from ral_system.types import Region, Split

FRAMES_PER_S = VideoSearchConfig.FRAMES_PER_S
FRAME_PX = 56
SECOND_NAMES = LETTERS[:8]
MAX_SECONDS = len(SECOND_NAMES)
KINDS = ("when", "what", "colour")

_THINGS = SHAPES + DIGITS


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video with one question. `thought` names the second that the answer follows from, and what it shows."""

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
    """Names things in a fixed order: only where each is has to be found."""
    search: str
    """Every such thing with its second and colour: the way back from content to time."""
    frames: np.ndarray
    """uint8 [FRAMES_PER_S · seconds, FRAME_PX, FRAME_PX, 3]"""
    evidence: tuple[Region, ...]
    """Cell and second of the thing that the question is about."""


@dataclass(frozen=True, slots=True)
class VideoSearch:
    """The generator of videos that last `seconds`."""

    seed: int
    seconds: int
    described: int = MAX_SECONDS
    """Largest number of seconds that a caption describes, and of things that it locates."""

    def __post_init__(self) -> None:
        if not 2 <= self.seconds <= MAX_SECONDS:
            raise ValueError(f"seconds must be 2..{MAX_SECONDS}, got {self.seconds}")

    def record(self, split: Split, index: int) -> VideoRecord:
        """Return the `index`-th record of `split`; question kinds take turns. Seconds are called a, b, c, …"""
        rng = np.random.default_rng([self.seed, index, 0 if split == "train" else 1])
        shown = self._shown(rng, split)
        kind, at = KINDS[index % len(KINDS)], int(rng.integers(self.seconds))
        described, sought = (rng.permutation(self.seconds)[: self.described].tolist() for _ in range(2))
        sought.sort(key=lambda i: _THINGS.index(shown[i].thing))
        question, answer = {
            "when": (f"where is the {shown[at].thing} ?", SECOND_NAMES[at]),
            "what": (f"what is at {SECOND_NAMES[at]} ?", shown[at].words),
            "colour": (f"what colour is the {shown[at].thing} ?", shown[at].colour),
        }[kind]
        drawn, boxes = zip(*(draw_alone(cell, FRAME_PX, split, rng) for cell in shown), strict=True)
        left, top, right, bottom = boxes[at]
        return VideoRecord(
            index=index,
            split=split,
            kind=kind,
            question=question,
            thought=_described(shown, [at]) if kind == "what" else _found(shown, [at]),
            answer=answer,
            caption_question=f"describe {' '.join(SECOND_NAMES[i] for i in described)}",
            caption=_described(shown, described),
            search_question=f"find {' '.join(shown[i].thing for i in sought)}",
            search=_found(shown, sought),
            frames=np.repeat(drawn, FRAMES_PER_S, axis=0),
            evidence=(Region(left, top, right, bottom, start_s=float(at), end_s=float(at + 1)),),
        )

    def _shown(self, rng: np.random.Generator, split: Split) -> list[Cell]:
        """Draw a new thing for every second, in any colour."""
        colours = list(COLOURS)
        while True:
            order = rng.permutation(len(_THINGS))[: self.seconds]
            shown = [Cell(colours[rng.integers(len(colours))], _THINGS[i]) for i in order]
            content = ";".join(cell.words for cell in shown)
            held_out = hashlib.sha256(content.encode()).digest()[0] % HELD_OUT_SHARE == 0
            if held_out == (split == "held_out"):
                return shown


def _described(shown: Sequence[Cell], seconds: Sequence[int]) -> str:
    return " ".join(f"{SECOND_NAMES[i]} {shown[i].words}" for i in seconds)


def _found(shown: Sequence[Cell], seconds: Sequence[int]) -> str:
    return " ".join(f"{shown[i].thing} {SECOND_NAMES[i]} {shown[i].colour}" for i in seconds)
