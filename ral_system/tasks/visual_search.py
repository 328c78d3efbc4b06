"""Visual search: generated mosaics of coloured shapes and real handwritten digits, with questions about their cells.

Every record is a pure function of (seed, split, index). Train and held-out are disjoint by construction twice over:
a scene belongs to the split that its own content hashes to, and each handwritten digit image serves one split only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from PIL import Image

from ral_system.errors import DataError
from ral_system.tasks.cells import (
    COLOURS,
    DIGITS,
    EMPTY,
    HELD_OUT_SHARE,
    LETTERS,
    SHAPES,
    Cell,
    cell_region,
    draw_board,
    position_name,
    positions,
)
from ral_system.types import Region, Split

COLUMN_NAMES = LETTERS[:8]
MAX_GRID = len(COLUMN_NAMES)
KINDS = ("attribute", "content", "position", "count", "compare")

_MAX_SCENES = 20_000  # a board is called impossible after seconds, not hours


@dataclass(frozen=True, slots=True)
class Record:
    """One scene with one question. `thought` names the cells that the answer follows from, and no other."""

    index: int
    split: Split
    kind: str
    question: str
    thought: str
    answer: str
    glance: str
    """Answer at a glance: right if one cell matters, a guess if several do."""
    caption_question: str
    """Names positions in random order: a name must be bound to its place, not to its turn."""
    caption: str
    """Every such position with its content, in the order asked for."""
    search_question: str
    """Names all things that occur once, in random order."""
    search: str
    """Every such thing with its position and colour: the way back from content to place."""
    board: str
    """Every position with its content, in random order: the picture in words."""
    image: Image.Image
    evidence: tuple[Region, ...]
    """The cells that the answer depends on: those of `thought`."""


@dataclass(frozen=True, slots=True)
class VisualSearch:
    """The generator. A grid × grid mosaic with `objects` filled cells, so grid² visual tokens at 28 px a cell.

    One object is the target of the question, the other `objects - 1` are distractors.
    """

    seed: int
    grid: int
    objects: int
    digits: bool = True
    described: int = MAX_GRID**2
    """Largest number of positions that a caption describes, half of them filled as far as possible."""

    def __post_init__(self) -> None:
        if not 2 <= self.grid <= MAX_GRID:
            raise ValueError(f"grid must be 2..{MAX_GRID}, got {self.grid}")
        if not 2 <= self.objects <= self.grid**2:
            raise ValueError(f"objects must be 2..grid²={self.grid**2}, got {self.objects}")

    def record(self, split: Split, index: int) -> Record:
        """The `index`-th record of `split`. Question kinds take turns, so any window of records holds all of them."""
        rng = np.random.default_rng([self.seed, index, 0 if split == "train" else 1])
        kind = KINDS[index % len(KINDS)]
        cells, asked = self._scene_with_question(kind, split, rng)
        image = draw_board(cells, self.grid, split, rng)
        places = positions(self.grid)
        order = [places[i] for i in rng.permutation(self.grid**2)]
        once = _unique_things(cells)
        unique = [p for p in order if p in once]
        described = self._described(order, cells)
        return Record(
            index=index,
            split=split,
            kind=kind,
            question=asked.question,
            thought=asked.thought,
            answer=asked.answer,
            glance=asked.answer if asked.guess is None else asked.guess,
            caption_question=f"describe {' '.join(described)}",
            caption=_describe(cells, described),
            search_question=f"find {' '.join(cells[p].thing for p in unique)}",
            search=_locate(cells, unique),
            board=_describe(cells, order),
            image=image,
            evidence=tuple(cell_region(position, self.grid) for position in asked.cells),
        )

    def _scene_with_question(self, kind: str, split: Split, rng: np.random.Generator) -> tuple[dict[str, Cell], Asked]:
        for _ in range(_MAX_SCENES):
            cells = self._scene(rng)
            if _scene_split(cells) == split and (asked := _QUESTIONS[kind](cells, self, rng)) is not None:
                return cells, asked
        raise DataError(
            f"no scene with data.objects={self.objects}, data.digits={str(self.digits).lower()} admits a {kind!r} "
            f"question ({_MAX_SCENES} tried), which needs things that occur once; use fewer objects or data.digits=true"
        )

    def _described(self, order: Sequence[str], cells: dict[str, Cell]) -> list[str]:
        filled, empty = [p for p in order if p in cells], [p for p in order if p not in cells]
        in_turn = [p for pair in zip_longest(filled, empty) for p in pair if p is not None]
        chosen = in_turn[: self.described]
        return [p for p in order if p in chosen]

    def _scene(self, rng: np.random.Generator) -> dict[str, Cell]:
        things = SHAPES + DIGITS if self.digits else SHAPES
        places = positions(self.grid)
        chosen = sorted(rng.choice(len(places), size=self.objects, replace=False).tolist())
        weights = np.array([1.0 if t in DIGITS else len(DIGITS) / len(SHAPES) for t in things])
        return {
            places[i]: Cell(
                colour=list(COLOURS)[rng.integers(len(COLOURS))],
                thing=things[rng.choice(len(things), p=weights / weights.sum())],
            )
            for i in chosen
        }


def words() -> list[str]:
    """Every word that questions, thoughts, answers and captions are made of, for building a tokenizer."""
    positions = [position_name(row, column) for row in range(MAX_GRID) for column in range(MAX_GRID)]
    questions = "what colour is the at ? where how many digits circles are in row column which higher or describe find"
    thoughts = "glance yes no"
    anchors = "look back"
    numbers = [str(n) for n in range(10, MAX_GRID**2 - 1)]  # in no text yet; they keep the ids that models know
    language = f"{questions} {thoughts}".split()
    vocabulary = [
        *language, *COLUMN_NAMES, EMPTY, *COLOURS, *SHAPES, *DIGITS, *numbers, *anchors.split(), *positions
    ]  # fmt: skip
    return list(dict.fromkeys(vocabulary))


def _describe(cells: dict[str, Cell], positions: Sequence[str]) -> str:
    return " ".join(f"{p} {cells[p].words if p in cells else EMPTY}" for p in positions)


def _locate(cells: dict[str, Cell], positions: Sequence[str]) -> str:
    return " ".join(f"{cells[p].thing} {p} {cells[p].colour}" for p in positions)


def _scene_split(cells: dict[str, Cell]) -> Split:
    content = ";".join(f"{position}={cell.words}" for position, cell in sorted(cells.items()))
    return "held_out" if hashlib.sha256(content.encode()).digest()[0] % HELD_OUT_SHARE == 0 else "train"


# --- questions: (cells, board, rng) -> what is asked, or None when the scene does not admit the question --------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, what to see before answering it, the answer, the cells that it depends on, and a guess if one glance
    is not enough for it.
    """

    question: str
    thought: str
    answer: str
    cells: Sequence[str]
    guess: str | None = None


def _unique_things(cells: dict[str, Cell]) -> list[str]:
    """Return the positions of objects that are the only ones of their kind, whatever their colour."""
    things = [cell.thing for cell in cells.values()]
    return [position for position, cell in cells.items() if things.count(cell.thing) == 1]


def _attribute(cells: dict[str, Cell], board: VisualSearch, rng: np.random.Generator) -> Asked | None:
    """Colour of the only object of its kind."""
    unique = _unique_things(cells)
    if not unique:
        return None
    at = unique[rng.integers(len(unique))]
    return Asked(f"what colour is the {cells[at].thing} ?", _locate(cells, [at]), cells[at].colour, [at])


def _content(cells: dict[str, Cell], board: VisualSearch, rng: np.random.Generator) -> Asked | None:
    """Ask what is at a position."""
    at = list(cells)[rng.integers(len(cells))]
    return Asked(f"what is at {at} ?", _describe(cells, [at]), cells[at].words, [at])


def _position(cells: dict[str, Cell], board: VisualSearch, rng: np.random.Generator) -> Asked | None:
    """Position of the only object of its kind."""
    unique = _unique_things(cells)
    if not unique:
        return None
    at = unique[rng.integers(len(unique))]
    return Asked(f"where is the {cells[at].thing} ?", _locate(cells, [at]), at, [at])


def _count(cells: dict[str, Cell], board: VisualSearch, rng: np.random.Generator) -> Asked | None:
    """Ask how many digits (on boards without digits: circles) a row or a column holds; 0 is an answer."""
    noun, counted = ("digits", DIGITS) if board.digits else ("circles", SHAPES[:1])
    line = int(rng.integers(board.grid))
    if rng.random() < 0.5:
        where, positions = f"row {line + 1}", [position_name(line, column) for column in range(board.grid)]
    else:
        where, positions = f"column {COLUMN_NAMES[line]}", [position_name(row, line) for row in range(board.grid)]
    tally, number = [], 0
    for position in positions:
        hit = position in cells and cells[position].thing in counted
        number += hit
        tally.append(f"{position} {'yes' if hit else 'no'} {number}")
    guess = str(rng.integers(board.grid + 1))
    return Asked(f"how many {noun} are in {where} ?", " ".join(tally), str(number), positions, guess)


def _compare(cells: dict[str, Cell], board: VisualSearch, rng: np.random.Generator) -> Asked | None:
    """Ask which of two objects, each the only one of its kind, is in the higher row."""
    unique = _unique_things(cells)
    if len(unique) < 2:
        return None
    first, second = (unique[i] for i in rng.choice(len(unique), size=2, replace=False))
    if first[1] == second[1]:
        return None
    higher = min(first, second, key=lambda position: position[1])
    return Asked(
        f"which is higher the {cells[first].thing} or the {cells[second].thing} ?",
        _locate(cells, [first, second]),
        cells[higher].thing,
        [first, second],
        guess=cells[first if rng.random() < 0.5 else second].thing,
    )


_QUESTIONS: dict[str, Callable[[dict[str, Cell], VisualSearch, np.random.Generator], Asked | None]] = {
    "attribute": _attribute,
    "content": _content,
    "position": _position,
    "count": _count,
    "compare": _compare,
}
