"""Cells of generated pictures: coloured shapes and real handwritten digits, their names, and how they are drawn."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ral_system.types import Box, Region, Split

CELL_PX = 28
LETTERS = "abcdefghijkl"
"""Names of columns and of seconds: a number would be taken for a digit that is shown."""
COLOURS = {
    "red": (220, 40, 40),
    "green": (30, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (235, 190, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIGITS = tuple(str(d) for d in range(10))
ARROWS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
"""Rows and columns from an arrow's cell to the one that it points to."""
MARKED = SHAPES[:3]
"""Shapes with room for a mark."""
EMPTY = "empty"
HELD_OUT_SHARE = 5
"""One scene, and one digit image, in five is held out."""

_MARK_PX = 14  # one patch of the vision encoder
_BACKGROUND = (240, 240, 240)


@dataclass(frozen=True, slots=True)
class Cell:
    """One filled cell: a colour word, an object word (shape, digit or arrow) and perhaps a small digit on the shape."""

    colour: str
    thing: str
    mark: str = ""

    @property
    def words(self) -> str:
        """Words of the cell, such as `circle red`: in `a1 circle red` a thing is next to its place and its colour."""
        return f"{self.thing} {self.colour} {self.mark}".rstrip()


def position_name(row: int, column: int) -> str:
    """Chess-like name of a cell: column letter, row number from the top. (0, 0) is `a1`."""
    return f"{LETTERS[column]}{row + 1}"


def place_of(position: str) -> tuple[int, int]:
    """Row and column of a cell, from 0 on: the inverse of `position_name`."""
    return int(position[1:]) - 1, LETTERS.index(position[0])


def positions(grid: int) -> list[str]:
    """Return the names of all cells of a board, row by row."""
    return [position_name(row, column) for row in range(grid) for column in range(grid)]


def cell_region(position: str, grid: int) -> Region:
    """Return the rectangle of a cell of a board."""
    row, column = place_of(position)
    left, top, right, bottom = (edge / grid for edge in (column, row, column + 1, row + 1))
    return Region(left, top, right, bottom)


def draw_board(cells: Mapping[str, Cell], grid: int, split: Split, rng: np.random.Generator) -> Image.Image:
    """Draw a board of grid × grid cells; digits come from the images of `split`."""
    side = grid * CELL_PX
    image = Image.new("RGB", (side, side), _BACKGROUND)
    for position in positions(grid):
        if (cell := cells.get(position)) is not None:
            row, column = place_of(position)
            image.paste(COLOURS[cell.colour], (column * CELL_PX, row * CELL_PX), _mask(cell, split, rng))
    return image


def draw_alone(cell: Cell, side_px: int, split: Split, rng: np.random.Generator) -> tuple[np.ndarray, Box]:
    """A thing in one of the cells of a square picture, uint8 [side, side, 3], and where that cell is."""
    image = Image.new("RGB", (side_px, side_px), _BACKGROUND)
    left, top = (CELL_PX * int(rng.integers(side_px // CELL_PX)) for _ in range(2))
    image.paste(COLOURS[cell.colour], (left, top), _mask(cell, split, rng))
    right, bottom = left + CELL_PX, top + CELL_PX
    return np.asarray(image), (left / side_px, top / side_px, right / side_px, bottom / side_px)


# --- glyphs: "L" masks of one cell, jittered in size and place --------------------------------------------------------


def _mask(cell: Cell, split: Split, rng: np.random.Generator) -> Image.Image:
    if cell.mark:
        return _marked_mask(cell, split, rng)
    if cell.thing in ARROWS:
        return _arrow_mask(cell.thing, rng)
    return _digit_mask(cell.thing, split, rng, (22, 26)) if cell.thing in DIGITS else _shape_mask(cell.thing, rng)


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


def _arrow_mask(direction: str, rng: np.random.Generator) -> Image.Image:
    length, width = int(rng.integers(9, 12)), int(rng.integers(7, 10))
    tip, across = np.array(ARROWS[direction][::-1]), np.array(ARROWS[direction])
    middle = CELL_PX // 2 + rng.integers(-2, 3, size=2)
    head = [middle + tip * length, middle + across * width, middle - across * width]
    mask = Image.new("L", (CELL_PX, CELL_PX), 0)
    draw = ImageDraw.Draw(mask)
    draw.polygon([tuple(map(int, corner)) for corner in head], fill=255)
    draw.line([tuple(map(int, middle)), tuple(map(int, middle - tip * length))], fill=255, width=5)
    return mask


def _marked_mask(cell: Cell, split: Split, rng: np.random.Generator) -> Image.Image:
    """Draw a large shape with the mark left out of it, in the colour of the background."""
    left, top = (int(rng.integers(0, 3)) for _ in range(2))
    right, bottom = left + CELL_PX - 3, top + CELL_PX - 3
    mask = Image.new("L", (CELL_PX, CELL_PX), 0)
    draw = ImageDraw.Draw(mask)
    if cell.thing == "circle":
        draw.ellipse((left, top, right, bottom), fill=255)
    elif cell.thing == "square":
        draw.rectangle((left, top, right, bottom), fill=255)
    else:
        draw.polygon([((left + right) // 2, top), (left, bottom), (right, bottom)], fill=255)
    below = 5 if cell.thing == "triangle" else 0  # where a triangle is wide
    digit = _digit_mask(cell.mark, split, rng, (_MARK_PX, _MARK_PX), centred=True)
    mask.paste(0, ((left + right - CELL_PX) // 2 + 1, (top + bottom - CELL_PX) // 2 + 1 + below), digit)
    return mask


def _digit_mask(
    digit: str, split: Split, rng: np.random.Generator, sides_px: tuple[int, int], centred: bool = False
) -> Image.Image:
    sources = digit_images()[(digit, split)]
    pixels = sources[rng.integers(len(sources))]
    side = int(rng.integers(sides_px[0], sides_px[1] + 1))
    free = CELL_PX - side
    left, top = (int(rng.integers(0, free + 1)) if not centred else free // 2 for _ in range(2))
    mask = Image.new("L", (CELL_PX, CELL_PX), 0)
    mask.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), (left, top))
    return mask


@functools.cache
def digit_images() -> dict[tuple[str, Split], list[np.ndarray]]:
    """1,797 handwritten digits of 8 × 8 pixels in 17 greys, every fifth source held out.

    The test set of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak, UCI Machine Learning
    Repository, 1998 (doi.org/10.24432/C50P49), licence CC BY 4.0.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as bundle:
        images, labels = bundle["images"], bundle["labels"]
    sources: dict[tuple[str, Split], list[np.ndarray]] = {(d, s): [] for d in DIGITS for s in ("train", "held_out")}
    for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        split: Split = "held_out" if i % HELD_OUT_SHARE == 0 else "train"
        sources[(str(label), split)].append(np.minimum(pixels * np.uint16(16), 255).astype(np.uint8))
    return sources
