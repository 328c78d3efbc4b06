"""Tasks that need looking: families of generated questions in five difficulties, whose text does not give the answer.

Every record is a pure function of (seed, split, index). Train and held-out are disjoint by construction twice over, as
in visual search: a scene belongs to the split that its content hashes to, and each handwritten digit serves one split.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ral_system.config.choices import LookingFamily
from ral_system.tasks.cells import (
    ARROWS,
    COLOURS,
    DIGITS,
    HELD_OUT_SHARE,
    LETTERS,
    MARKED,
    SHAPES,
    Cell,
    cell_region,
    draw_board,
    place_of,
    position_name,
    positions,
)
from ral_system.types import Region, Split

GRIDS = (4, 6, 8, 10, 12)
"""Cells per side of a picture, by difficulty."""
PAIR_GRIDS = (3, 4, 6, 8, 10)
"""Cells per side of each picture of `compare`."""
SECONDS = (4, 6, 8, 10, 12)
"""Length of a video of `needle`."""
COUNTED = ((2, 2), (2, 3), (3, 3), (3, 4), (4, 4))
"""Sides of the rectangle that `count` asks about, either way round."""
FRAME_GRID = 2
FRAMES_PER_S = 2
"""All alike within a second, and one patch of the vision encoder."""

_ELSEWHERE = 0.25  # share of the cells outside the rectangle of `count` that hold what is counted
_ORDINALS = ("first", "second")
_THINGS = SHAPES + DIGITS

Place = tuple[int, str]
"""Index of a picture, or of a second, and the position of a cell in it."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What is shown: boards of grid × grid cells, which are pictures or, of a video, its seconds."""

    grid: int
    boards: tuple[Mapping[str, Cell], ...]
    video: bool = False

    def cell(self, place: Place) -> Cell:
        """Return the cell at a place."""
        return self.boards[place[0]][place[1]]

    def corner(self) -> Scene:
        """The upper left 2 × 2 cells of every board."""
        corner = positions(2)
        return replace(self, grid=2, boards=tuple({p: cells[p] for p in corner if p in cells} for cells in self.boards))

    def filled(self) -> list[Place]:
        """All places where something stands."""
        return [(board, position) for board, cells in enumerate(self.boards) for position in cells]

    def name(self, place: Place) -> str:
        """`b2` in a picture, `first b2` in one of two, and `b` in the second second of a video."""
        board, position = place
        if self.video:
            return LETTERS[board]
        return position if len(self.boards) == 1 else f"{_ORDINALS[board]} {position}"

    def region(self, place: Place) -> Region:
        """The place's rectangle, and its medium or second."""
        board, position = place
        region = cell_region(position, self.grid)
        if self.video:
            return replace(region, start_s=float(board), end_s=float(board + 1))
        return replace(region, medium=board)

    @property
    def split(self) -> Split:
        """The split that the content belongs to."""
        content = "|".join(";".join(f"{p}={cell.words}" for p, cell in sorted(cells.items())) for cells in self.boards)
        return "held_out" if hashlib.sha256(content.encode()).digest()[0] % HELD_OUT_SHARE == 0 else "train"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a scene. `thought` names the places that the answer depends on, in the order of looking."""

    question: str
    thought: str
    answer: str
    places: tuple[Place, ...]
    glance: str
    """Answer without a second look: right if one place matters, a guess if several do, and of a misleading question
    what it suggests."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A scene, drawn, and what is to be seen in it."""

    scene: Scene
    boards: np.ndarray
    """uint8 [boards, side, side, 3]"""
    caption_question: str
    """Names places in random order."""
    caption: str
    """Every such place with what stands there, in the order asked for."""
    search_question: str
    """Names things that occur once, with their colours where the thing alone occurs more often, in random order."""
    search: str
    """Every such thing with its place, and the rest of what is seen there."""


@dataclass(frozen=True, slots=True)
class LookingRecord:
    """One scene with one question."""

    index: int
    split: Split
    kind: str
    """Family and difficulty, such as `chain_2`."""
    question: str
    thought: str
    answer: str
    glance: str
    shown: Shown
    evidence: tuple[Region, ...]
    """The places that the answer depends on: those of `thought`."""


@dataclass(frozen=True, slots=True)
class Looking:
    """The generator. Families take turns, then difficulties."""

    seed: int
    families: tuple[LookingFamily, ...]
    difficulty: tuple[int, ...]
    described: int
    """Largest number of places that a caption describes, and of things that it locates."""

    def record(self, split: Split, index: int) -> LookingRecord:
        """Return the `index`-th record of `split`."""
        rng = self._rng(split, index)
        scene, asked = self._asked(split, index, rng)
        return LookingRecord(
            index=index,
            split=split,
            kind="{}_{}".format(*self._turn(index)),
            question=asked.question,
            thought=asked.thought,
            answer=asked.answer,
            glance=asked.glance,
            shown=self._shown(scene, split, rng),
            evidence=tuple(map(scene.region, asked.places)),
        )

    def corner(self, split: Split, index: int) -> Shown:
        """Return the upper left 2 × 2 cells of the record's boards."""
        rng = self._rng(split, index)
        return self._shown(self._asked(split, index, rng)[0].corner(), split, rng)

    def _shown(self, scene: Scene, split: Split, rng: np.random.Generator) -> Shown:
        boards = np.stack([np.asarray(draw_board(cells, scene.grid, split, rng)) for cells in scene.boards])
        filled, once = scene.filled(), _occurring_once(scene)
        described = [filled[i] for i in rng.permutation(len(filled))[: self.described]]
        sought = [once[i] for i in rng.permutation(len(once))[: self.described]]
        return Shown(
            scene=scene,
            boards=boards,
            caption_question=f"describe {' '.join(map(scene.name, described))}",
            caption=" ".join(_described(scene, place) for place in described),
            search_question=f"find {' '.join(thing for thing, _ in sought)}",
            search=" ".join(_found(scene, thing, place) for thing, place in sought),
        )

    def asked(self, split: Split, index: int) -> tuple[Scene, Asked]:
        """Return the record's scene and question without drawing it."""
        return self._asked(split, index, self._rng(split, index))

    def _asked(self, split: Split, index: int, rng: np.random.Generator) -> tuple[Scene, Asked]:
        family, difficulty = self._turn(index)
        while True:
            scene, asked = FAMILIES[family](difficulty, rng)
            if scene.split == split:
                return scene, asked

    def _rng(self, split: Split, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, index, 0 if split == "train" else 1])

    def _turn(self, index: int) -> tuple[LookingFamily, int]:
        turn, family = divmod(index, len(self.families))
        return self.families[family], self.difficulty[turn % len(self.difficulty)]


def words() -> list[str]:
    """Every word of the system turn, of questions, thoughts, answers and captions, for building a tokenizer."""
    questions = (
        "where is the ? which digit on how many are from to follow arrows what at end colour it in describe find"
    )
    language = f"{questions} glance answer".split()
    return [*language, *_ORDINALS, *COLOURS, *SHAPES, *DIGITS, *ARROWS, *LETTERS, *positions(max(GRIDS))]


def _described(scene: Scene, place: Place) -> str:
    return f"{scene.name(place)} {scene.cell(place).words}"


def _found(scene: Scene, thing: str, place: Place) -> str:
    return f"{thing} {scene.name(place)}{scene.cell(place).words.removeprefix(thing)}"


def _occurring_once(scene: Scene) -> list[tuple[str, Place]]:
    """Return what identifies a thing: its name if there is no other of its kind, else with its colour if that helps."""
    cells = {place: scene.cell(place) for place in scene.filled()}
    kinds, exact = Counter(c.thing for c in cells.values()), Counter((c.thing, c.colour) for c in cells.values())
    return [
        (cell.thing if kinds[cell.thing] == 1 else f"{cell.thing} {cell.colour}", place)
        for place, cell in cells.items()
        if exact[cell.thing, cell.colour] == 1
    ]


# --- families: (difficulty, rng) -> a scene and a question about it ---------------------------------------------------


def _search(difficulty: int, rng: np.random.Generator) -> tuple[Scene, Asked]:
    """Ask where the only thing of its kind and colour is; every other cell shares its kind or its colour."""
    target = _any_cell(_THINGS, rng)
    scene, at = _one_among(GRIDS[difficulty - 1], target, lambda: _near(target, _THINGS, rng), rng)
    place = scene.name(at)
    return scene, Asked(f"where is the {target.words} ?", _found(scene, target.words, at), place, (at,), place)


def _detail(difficulty: int, rng: np.random.Generator) -> tuple[Scene, Asked]:
    """Ask which small digit is on a shape that has to be found first."""
    target = replace(_any_cell(MARKED, rng), mark=_one_of(DIGITS, rng))

    def distractor() -> Cell:
        return replace(_near(target, MARKED, rng), mark=_one_of(DIGITS, rng))

    scene, at = _one_among(GRIDS[difficulty - 1], target, distractor, rng)
    return scene, _asked_for_mark(scene, at)


def _count(difficulty: int, rng: np.random.Generator) -> tuple[Scene, Asked]:
    """Ask how many things of one kind and colour are in a rectangle; others share the kind or the colour."""
    grid, target = GRIDS[difficulty - 1], _any_cell(_THINGS, rng)
    height, width = (COUNTED[difficulty - 1][i] for i in rng.permutation(2))
    top, left = (int(rng.integers(grid - side + 1)) for side in (height, width))
    inside = [position_name(top + row, left + column) for row in range(height) for column in range(width)]
    most = min(9, len(inside))
    number, guess = (int(rng.integers(most + 1)) for _ in range(2))
    counted = {inside[i] for i in rng.permutation(len(inside))[:number]}
    others = {p for p in positions(grid) if p not in inside and rng.random() < _ELSEWHERE}
    cells = {p: target if p in counted or p in others else _near(target, _THINGS, rng) for p in positions(grid)}
    scene, tally, seen = Scene(grid, (cells,)), [], 0
    for position in inside:
        seen += position in counted
        tally.append(f"{position} {seen}")
    question = f"how many {target.words} are from {inside[0]} to {inside[-1]} ?"
    return scene, Asked(question, " ".join(tally), str(number), tuple((0, p) for p in inside), str(guess))


def _chain(difficulty: int, rng: np.random.Generator) -> tuple[Scene, Asked]:
    """Ask what is at the end of `difficulty + 1` arrows; the question names the first."""
    grid = GRIDS[difficulty - 1]
    path, directions = _walk(grid, difficulty + 1, rng)
    cells = {p: _any_cell(tuple(ARROWS) if rng.random() < 0.5 else _THINGS, rng) for p in positions(grid)}
    for position, direction in zip(path[:-1], directions, strict=True):
        cells[position] = _any_cell((direction,), rng)
    cells[path[-1]] = _any_cell(_THINGS, rng)
    scene, places = Scene(grid, (cells,)), tuple((0, position) for position in path)
    steps = [f"{position} {direction}" for position, direction in zip(path, directions, strict=False)]
    thought = " ".join([*steps, _described(scene, places[-1])])
    guess = _one_of([cell.words for cell in cells.values() if cell.thing in _THINGS], rng)
    question = f"follow the arrows from {path[0]} what is at the end ?"
    return scene, Asked(question, thought, cells[path[-1]].words, places, guess)


def _misleading(difficulty: int, rng: np.random.Generator) -> tuple[Scene, Asked]:
    """Ask for the colour of a thing. The question suggests one, drawn independently: right in a quarter of them."""
    target, suggested = _any_cell(_THINGS, rng), _one_of(tuple(COLOURS), rng)
    others = tuple(thing for thing in _THINGS if thing != target.thing)
    scene, at = _one_among(GRIDS[difficulty - 1], target, lambda: _any_cell(others, rng), rng)
    question = f"the {target.thing} is {suggested} what colour is it ?"
    return scene, Asked(question, _found(scene, target.thing, at), target.colour, (at,), suggested)


def _compare(difficulty: int, rng: np.random.Generator) -> tuple[Scene, Asked]:
    """Ask what the second picture has where the only thing of its kind and colour is in the first one."""
    grid, target = PAIR_GRIDS[difficulty - 1], _any_cell(_THINGS, rng)
    first, (_, position) = _one_among(grid, target, lambda: _near(target, _THINGS, rng), rng)
    second = {p: _any_cell(_THINGS, rng) for p in positions(grid)}
    scene, places = Scene(grid, (*first.boards, second)), ((0, position), (1, position))
    thought = f"{_found(scene, target.words, places[0])} {_described(scene, places[1])}"
    guess = _one_of([cell.words for cell in second.values()], rng)
    question = f"what is in the second where the {target.words} is in the first ?"
    return scene, Asked(question, thought, second[position].words, places, guess)


def _needle(difficulty: int, rng: np.random.Generator) -> tuple[Scene, Asked]:
    """Ask which small digit is on a shape that is shown for one second; the others share its kind or its colour."""
    seconds, target = SECONDS[difficulty - 1], replace(_any_cell(MARKED, rng), mark=_one_of(DIGITS, rng))
    needle, boards = int(rng.integers(seconds)), []
    for second in range(seconds):
        distractor = replace(_near(target, MARKED, rng), mark=_one_of(DIGITS, rng))
        boards.append({_one_of(positions(FRAME_GRID), rng): target if second == needle else distractor})
    scene = Scene(FRAME_GRID, tuple(boards), video=True)
    return scene, _asked_for_mark(scene, (needle, next(iter(boards[needle]))))


FAMILIES: dict[LookingFamily, Callable[[int, np.random.Generator], tuple[Scene, Asked]]] = {
    "search": _search,
    "detail": _detail,
    "count": _count,
    "chain": _chain,
    "misleading": _misleading,
    "compare": _compare,
    "needle": _needle,
}


def _asked_for_mark(scene: Scene, at: Place) -> Asked:
    target = scene.cell(at)
    shape = f"{target.thing} {target.colour}"
    question = f"which digit is on the {shape} ?"
    return Asked(question, _found(scene, shape, at), target.mark, (at,), target.mark)


def _one_among(
    grid: int, target: Cell, distractor: Callable[[], Cell], rng: np.random.Generator
) -> tuple[Scene, Place]:
    at = _one_of(positions(grid), rng)
    return Scene(grid, ({p: target if p == at else distractor() for p in positions(grid)},)), (0, at)


def _near(target: Cell, things: tuple[str, ...], rng: np.random.Generator) -> Cell:
    """Draw a distractor that shares the target's kind or its colour, and never both."""
    if rng.random() < 0.5:
        return Cell(_one_of([colour for colour in COLOURS if colour != target.colour], rng), target.thing)
    return Cell(target.colour, _one_of([thing for thing in things if thing != target.thing], rng))


def _walk(grid: int, steps: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Draw a path that meets no cell twice: its steps + 1 positions, and its directions."""
    while True:
        directions = [_one_of(tuple(ARROWS), rng) for _ in range(steps)]
        path = [place_of(_one_of(positions(grid), rng))]
        for direction in directions:
            path.append((path[-1][0] + ARROWS[direction][0], path[-1][1] + ARROWS[direction][1]))
        if len(set(path)) == len(path) and all(0 <= at < grid for place in path for at in place):
            return [position_name(*place) for place in path], directions


def _any_cell(things: tuple[str, ...], rng: np.random.Generator) -> Cell:
    return Cell(_one_of(tuple(COLOURS), rng), _one_of(things, rng))


def _one_of(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
