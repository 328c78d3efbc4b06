"""Visual search: generated mosaics of coloured shapes and real handwritten digits, with questions about their cells.

Every record is a pure function of (seed, split, index). Train and held-out are disjoint by construction twice over:
a scene belongs to the split that its own content hashes to, and each handwritten digit image serves one split only.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Split = Literal["train", "held_out"]

CELL_PX = 28
MAX_GRID = 8
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


@dataclass(frozen=True, slots=True)
class Cell:
    """One filled cell: a colour word and an object word (shape or digit)."""

    colour: str
    thing: str

    @property
    def words(self) -> str:
        """For example `circle red`: in `a1 circle red` a thing stands beside both its place and its colour."""
        return f"{self.thing} {self.colour}"


@dataclass(frozen=True, slots=True)
class Record:
    """One scene with one question. `thought` reads the board in raster order, then names the cell asked about."""

    index: int
    split: Split
    kind: str
    question: str
    thought: str
    answer: str
    caption_question: str
    """Names all positions in random order: a name must be bound to its place, not to its turn."""
    caption: str
    """Every position with its content, in the order asked for."""
    search_question: str
    """Names all things that occur once, in random order."""
    search: str
    """Every such thing with its position and colour: the way back from content to place."""
    image: Image.Image


@dataclass(frozen=True, slots=True)
class VisualSearch:
    """The generator. A grid × grid mosaic with `objects` filled cells, so grid² visual tokens at 28 px a cell.

    One object is the target of the question, the other `objects - 1` are distractors.
    """

    seed: int
    grid: int
    objects: int
    digits: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.grid <= MAX_GRID:
            raise ValueError(f"grid must be 2..{MAX_GRID}, got {self.grid}")
        if not 2 <= self.objects <= self.grid**2:
            raise ValueError(f"objects must be 2..grid²={self.grid**2}, got {self.objects}")

    def record(self, split: Split, index: int) -> Record:
        """The `index`-th record of `split`. Question kinds take turns, so any window of records holds all of them."""
        rng = np.random.default_rng([self.seed, index, 0 if split == "train" else 1])
        kind = KINDS[index % len(KINDS)]
        while True:
            cells = self._scene(rng)
            if _scene_split(cells) != split:
                continue
            asked = _QUESTIONS[kind](cells, rng)
            if asked is not None:
                break
        image = self._draw(cells, split, rng)
        order = [self._positions()[i] for i in rng.permutation(self.grid**2)]
        unique = [p for p in order if p in _unique_things(cells)]
        return Record(
            index=index,
            split=split,
            kind=kind,
            question=asked.question,
            thought=_think(cells, self._positions(), asked),
            answer=asked.answer,
            caption_question=f"describe {' '.join(order)}",
            caption=_describe(cells, order),
            search_question=f"find {' '.join(cells[p].thing for p in unique)}",
            search=_locate(cells, unique),
            image=image,
        )

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
                    glyph = (
                        _digit_mask(cell.thing, split, rng) if cell.thing in DIGITS else _shape_mask(cell.thing, rng)
                    )
                    image.paste(COLOURS[cell.colour], (column * CELL_PX, row * CELL_PX), glyph)
        return image


def position_name(row: int, column: int) -> str:
    """Chess-like name of a cell: column letter, row number from the top. (0, 0) is `a1`."""
    return f"{'abcdefgh'[column]}{row + 1}"


def words() -> list[str]:
    """Every word that questions, thoughts, answers and captions are made of, for building a tokenizer."""
    positions = [position_name(row, column) for row in range(MAX_GRID) for column in range(MAX_GRID)]
    grammar = "what colour is the at ? where how many are there more or same describe find"
    numbers = [str(n) for n in range(10, MAX_GRID**2 + 1)]
    vocabulary = [*grammar.split(), EMPTY, *COLOURS, *SHAPES, *DIGITS, *numbers, *positions]
    return list(dict.fromkeys(vocabulary))


def _describe(cells: dict[str, Cell], positions: Sequence[str]) -> str:
    return " ".join(f"{p} {cells[p].words if p in cells else EMPTY}" for p in positions)


def _locate(cells: dict[str, Cell], positions: Sequence[str]) -> str:
    return " ".join(f"{cells[p].thing} {p} {cells[p].colour}" for p in positions)


def _think(cells: dict[str, Cell], positions: Sequence[str], asked: Asked) -> str:
    """Read the board in raster order, then name the cell that was found, if it is one."""
    scan = _describe(cells, positions)
    return scan if asked.at is None else f"{scan} {_locate(cells, [asked.at])}"


def _scene_split(cells: dict[str, Cell]) -> Split:
    content = ";".join(f"{position}={cell.words}" for position, cell in sorted(cells.items()))
    return "held_out" if hashlib.sha256(content.encode()).digest()[0] % _HELD_OUT_SHARE == 0 else "train"


# --- questions: (cells, rng) -> question and answer, or None when the scene does not admit the question ---------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its answer; `at` is the one cell that it follows from, or None when all cells matter."""

    question: str
    answer: str
    at: str | None = None


def _unique_things(cells: dict[str, Cell]) -> list[str]:
    """Positions of the objects that are the only ones of their kind, whatever their colour."""
    things = [cell.thing for cell in cells.values()]
    return [position for position, cell in cells.items() if things.count(cell.thing) == 1]


def _number(cells: dict[str, Cell], colour: str) -> int:
    """How many objects have a colour."""
    return sum(cell.colour == colour for cell in cells.values())


def _attribute(cells: dict[str, Cell], rng: np.random.Generator) -> Asked | None:
    """Colour of the only object of its kind."""
    unique = _unique_things(cells)
    if not unique:
        return None
    position = unique[rng.integers(len(unique))]
    return Asked(f"what colour is the {cells[position].thing} ?", cells[position].colour, at=position)


def _content(cells: dict[str, Cell], rng: np.random.Generator) -> Asked | None:
    """What stands at a position."""
    position = list(cells)[rng.integers(len(cells))]
    return Asked(f"what is at {position} ?", cells[position].words, at=position)


def _position(cells: dict[str, Cell], rng: np.random.Generator) -> Asked | None:
    """Position of the only object of its kind."""
    unique = _unique_things(cells)
    if not unique:
        return None
    position = unique[rng.integers(len(unique))]
    return Asked(f"where is the {cells[position].thing} ?", position, at=position)


def _count(cells: dict[str, Cell], rng: np.random.Generator) -> Asked | None:
    """How many objects have a colour; the colour occurs at least once."""
    colours = sorted({cell.colour for cell in cells.values()})
    colour = colours[rng.integers(len(colours))]
    return Asked(f"how many {colour} are there ?", str(_number(cells, colour)))


def _compare(cells: dict[str, Cell], rng: np.random.Generator) -> Asked | None:
    """Which of two colours is on more cells, or the same."""
    colours = sorted({cell.colour for cell in cells.values()})
    if len(colours) < 2:
        return None
    first, second = (colours[i] for i in rng.choice(len(colours), size=2, replace=False))
    more, fewer = _number(cells, first), _number(cells, second)
    answer = "same" if more == fewer else first if more > fewer else second
    return Asked(f"are there more {first} or {second} ?", answer)


_QUESTIONS: dict[str, Callable[[dict[str, Cell], np.random.Generator], Asked | None]] = {
    "attribute": _attribute,
    "content": _content,
    "position": _position,
    "count": _count,
    "compare": _compare,
}

# --- glyphs: "L" masks of one cell, jittered in size and place --------------------------------------------------------


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
    """UCI handwritten digits (1,797 images of 8 × 8, bundled with scikit-learn), every fifth source held out."""
    from sklearn.datasets import load_digits  # imported here: scikit-learn takes a second to load

    bundle = load_digits()
    sources: dict[tuple[str, Split], list[np.ndarray]] = {(d, s): [] for d in DIGITS for s in ("train", "held_out")}
    for i, (pixels, label) in enumerate(zip(bundle.images, bundle.target, strict=True)):
        split: Split = "held_out" if i % _HELD_OUT_SHARE == 0 else "train"
        sources[(str(label), split)].append(np.clip(pixels * 16, 0, 255).astype(np.uint8))
    return sources
