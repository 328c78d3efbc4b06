"""Visual search: generated mosaics of coloured shapes and real handwritten digits, with questions about their cells.

Every record is a pure function of (seed, split, index). Train and held-out are disjoint by construction twice over:
a scene belongs to the split that its own content hashes to, and each handwritten digit image serves one split only.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ral_system.errors import DataError
from ral_system.types import Box, Region, Split

CELL_PX = 28
COLUMN_NAMES = "abcdefgh"
MAX_GRID = len(COLUMN_NAMES)
COLOURS = {
    "red": (220, 40, 40),
    "green": (30, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (235, 190, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIGITS = tuple(str(d) for d in range(10))
KINDS = ("attribute", "content", "position", "count", "compare")
EMPTY = "empty"

_BACKGROUND = (240, 240, 240)
_HELD_OUT_SHARE = 5  # one scene (and one digit image) in five
_MAX_SCENES = 20_000  # a board is called impossible after seconds, not hours


@dataclass(frozen=True, slots=True)
class Cell:
    """One filled cell: a colour word and an object word (shape or digit)."""

    colour: str
    thing: str

    @property
    def words(self) -> str:
        """Words of the cell, such as `circle red`: in `a1 circle red` a thing is next to its place and its colour."""
        return f"{self.thing} {self.colour}"


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
    """Most positions that a caption names, half of them filled as far as possible."""

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
        image = self._draw(cells, split, rng)
        order = [self._positions()[i] for i in rng.permutation(self.grid**2)]
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
            image=image,
            evidence=tuple(self._cell(position) for position in asked.cells),
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

    def _cell(self, position: str) -> Region:
        row, column = int(position[1]) - 1, COLUMN_NAMES.index(position[0])
        left, top, right, bottom = (edge / self.grid for edge in (column, row, column + 1, row + 1))
        return Region(left, top, right, bottom)

    def _positions(self) -> list[str]:
        return [position_name(row, column) for row in range(self.grid) for column in range(self.grid)]

    def _scene(self, rng: np.random.Generator) -> dict[str, Cell]:
        things = SHAPES + DIGITS if self.digits else SHAPES
        positions = self._positions()
        chosen = sorted(rng.choice(len(positions), size=self.objects, replace=False).tolist())
        weights = np.array([1.0 if t in DIGITS else len(DIGITS) / len(SHAPES) for t in things])
        return {
            positions[i]: Cell(
                colour=list(COLOURS)[rng.integers(len(COLOURS))],
                thing=things[rng.choice(len(things), p=weights / weights.sum())],
            )
            for i in chosen
        }

    def _draw(self, cells: dict[str, Cell], split: Split, rng: np.random.Generator) -> Image.Image:
        side = self.grid * CELL_PX
        image = Image.new("RGB", (side, side), _BACKGROUND)
        for row in range(self.grid):
            for column in range(self.grid):
                cell = cells.get(position_name(row, column))
                if cell is not None:
                    image.paste(COLOURS[cell.colour], (column * CELL_PX, row * CELL_PX), _mask(cell.thing, split, rng))
        return image


def position_name(row: int, column: int) -> str:
    """Chess-like name of a cell: column letter, row number from the top. (0, 0) is `a1`."""
    return f"{COLUMN_NAMES[column]}{row + 1}"


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
    return "held_out" if hashlib.sha256(content.encode()).digest()[0] % _HELD_OUT_SHARE == 0 else "train"


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
    """What stands at a position."""
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
    """How many digits (on boards without digits: circles) a row or a column holds; 0 is an answer."""
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
    """Which of two objects, each the only one of its kind, stands in the higher row."""
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

# --- glyphs: "L" masks of one cell, jittered in size and place --------------------------------------------------------


def _mask(thing: str, split: Split, rng: np.random.Generator) -> Image.Image:
    return _digit_mask(thing, split, rng) if thing in DIGITS else _shape_mask(thing, rng)


def _shape_mask(shape: str, rng: np.random.Generator) -> Image.Image:
    radius = int(rng.integers(8, 12))
    cx, cy = (CELL_PX // 2 + int(rng.integers(-2, 3)) for _ in range(2))
    box = (cx - radius, cy - radius, cx + radius, cy + radius)
    mask = Image.new("L", (CELL_PX, CELL_PX), 0)
    draw = ImageDraw.Draw(mask)
    if shape == "circle":
        draw.ellipse(box, fill=255)
    elif shape == "square":
        draw.rectangle(box, fill=255)
    elif shape == "triangle":
        draw.polygon([(cx, cy - radius), (cx - radius, cy + radius), (cx + radius, cy + radius)], fill=255)
    else:
        draw.line((box[0], box[1], box[2], box[3]), fill=255, width=5)
        draw.line((box[0], box[3], box[2], box[1]), fill=255, width=5)
    return mask


def draw_alone(cell: Cell, side_px: int, split: Split, rng: np.random.Generator) -> tuple[np.ndarray, Box]:
    """A thing in one of the cells of a square picture, uint8 [side, side, 3], and where that cell is."""
    image = Image.new("RGB", (side_px, side_px), _BACKGROUND)
    left, top = (CELL_PX * int(rng.integers(side_px // CELL_PX)) for _ in range(2))
    image.paste(COLOURS[cell.colour], (left, top), _mask(cell.thing, split, rng))
    right, bottom = left + CELL_PX, top + CELL_PX
    return np.asarray(image), (left / side_px, top / side_px, right / side_px, bottom / side_px)


def _digit_mask(digit: str, split: Split, rng: np.random.Generator) -> Image.Image:
    sources = _digit_images()[(digit, split)]
    pixels = sources[rng.integers(len(sources))]
    side = int(rng.integers(22, 27))
    left, top = (int(rng.integers(0, CELL_PX - side + 1)) for _ in range(2))
    mask = Image.new("L", (CELL_PX, CELL_PX), 0)
    mask.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), (left, top))
    return mask


@functools.cache
def _digit_images() -> dict[tuple[str, Split], list[np.ndarray]]:
    """1,797 handwritten digits of 8 × 8 pixels in 17 greys, every fifth source held out.

    The test set of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak, UCI Machine Learning
    Repository, 1998 (doi.org/10.24432/C50P49), licence CC BY 4.0.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as bundle:
        images, labels = bundle["images"], bundle["labels"]
    sources: dict[tuple[str, Split], list[np.ndarray]] = {(d, s): [] for d in DIGITS for s in ("train", "held_out")}
    for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        split: Split = "held_out" if i % _HELD_OUT_SHARE == 0 else "train"
        sources[(str(label), split)].append(np.minimum(pixels * np.uint16(16), 255).astype(np.uint8))
    return sources
