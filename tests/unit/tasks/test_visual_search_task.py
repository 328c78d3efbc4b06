"""The generated task, checked against the caption and against the pixels, not against the generator's own scene."""

import re

import numpy as np
import pytest
from PIL import Image

from ral_system.errors import DataError
from ral_system.tasks import visual_search
from ral_system.tasks.cells import CELL_PX, COLOURS, DIGITS, SHAPES, digit_images
from ral_system.tasks.tiny_model import build_tokenizer
from ral_system.tasks.visual_search import KINDS, Record, VisualSearch, words
from ral_system.types import Split

Scene = dict[str, tuple[str, str] | None]
"""Position → its thing and colour in the order they are said, or None when empty."""


def scene(text: str, cells: int) -> Scene:
    """Read the first `cells` entries: a position and `empty`, or a thing and a colour."""
    found: Scene = {}
    tokens = text.split()
    while len(found) < cells:
        position = tokens.pop(0)
        assert re.fullmatch("[a-h][1-8]", position) and position not in found
        word = tokens.pop(0)
        found[position] = None if word == "empty" else (word, tokens.pop(0))
    return found


def colour_of(cell: tuple[str, str]) -> str:
    (colour,) = [word for word in cell if word in COLOURS]
    return colour


def thing_of(cell: tuple[str, str]) -> str:
    (thing,) = [word for word in cell if word in (*SHAPES, *DIGITS)]
    return thing


def seen(image: Image.Image, grid: int) -> dict[str, str | None]:
    """Position → colour of the pixels there."""
    pixels = np.asarray(image).astype(float)
    found: dict[str, str | None] = {}
    for row in range(grid):
        for column in range(grid):
            cell = pixels[row * CELL_PX : (row + 1) * CELL_PX, column * CELL_PX : (column + 1) * CELL_PX].reshape(-1, 3)
            contrast = np.abs(cell - cell.max(0)).sum(1)
            ink = cell[contrast.argsort()[-8:]].mean(0)
            nearest = min(COLOURS, key=lambda name: np.abs(ink - COLOURS[name]).sum())
            found["abcdefgh"[column] + str(row + 1)] = nearest if contrast.max() > 60 else None
    return found


def answer(question: str, board: Scene) -> str:
    """Answer a question from the caption's scene, asserting that it has one answer."""
    filled = {p: cell for p, cell in board.items() if cell is not None}
    text = question.removesuffix(" ?").split()
    match text:
        case ["what", "colour", "is", "the", thing]:
            (cell,) = [cell for cell in filled.values() if thing_of(cell) == thing]
            return colour_of(cell)
        case ["what", "is", "at", position]:
            return " ".join(filled[position])
        case ["where", "is", "the", *description]:
            (position,) = [p for p, cell in filled.items() if {*description} <= {*cell}]
            return position
        case ["how", "many", noun, "are", "in", "row" | "column", line]:
            counted = {"digits": DIGITS, "circles": ("circle",)}[noun]
            return str(sum(line in p and thing_of(cell) in counted for p, cell in filled.items()))
        case ["which", "is", "higher", "the", first, "or", "the", second]:
            (row_1,), (row_2,) = (
                [p[1] for p, cell in filled.items() if thing_of(cell) == thing] for thing in (first, second)
            )
            assert row_1 != row_2
            return first if row_1 < row_2 else second
    raise AssertionError(f"unknown question {question!r}")


def records(grid: int, objects: int, count: int, split: Split = "train", seed: int = 0, digits: bool = True) -> list:
    source = VisualSearch(seed, grid, objects, digits)
    return [source.record(split, i) for i in range(count)]


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize(("grid", "objects"), [(2, 2), (3, 9), (3, 4), (5, 12)])
def test_answers_follow_from_the_caption_and_colours_are_in_the_picture(grid: int, objects: int, split: Split) -> None:
    kinds = set()
    for record in records(grid, objects, 25, split):
        board = scene(record.caption, grid**2)
        assert sum(cell is not None for cell in board.values()) == objects
        assert answer(record.question, board) == record.answer, record
        assert seen(record.image, grid) == {p: cell and colour_of(cell) for p, cell in board.items()}
        assert record.image.size == (grid * CELL_PX, grid * CELL_PX)
        kinds.add(record.kind)
    assert kinds == set(KINDS)


def test_the_caption_follows_the_order_asked_for() -> None:
    orders = set()
    for record in records(3, 5, 10):
        asked = re.findall(r"\b[a-h][1-8]\b", record.caption_question)
        assert list(scene(record.caption, 9)) == asked
        orders.add(tuple(asked))
    assert len(orders) == 10


def evidence(question: str, board: Scene) -> str:
    """Return what a thought has to say, computed again from the caption's scene."""
    at = {thing_of(cell): p for p, cell in board.items() if cell}
    match question.removesuffix(" ?").split():
        case ["what", "is", "at", position]:
            return " ".join([position, *(board[position] or ())])
        case ["how", "many", "digits", "are", "in", "row" | "column", line]:
            said, number = [], 0
            for position in [p for p in sorted(board, key=lambda p: (p[1], p[0])) if line in p]:
                cell = board[position]
                hit = cell is not None and thing_of(cell) in DIGITS
                number += hit
                said += [position, "yes" if hit else "no", str(number)]
            return " ".join(said)
        case ["which", "is", "higher", "the", first, "or", "the", second]:
            return " ".join(
                f"{thing} {at[thing]} {colour_of(board[at[thing]] or ('', ''))}" for thing in (first, second)
            )
        case [*_, thing]:
            return f"{thing} {at[thing]} {colour_of(board[at[thing]] or ('', ''))}"
    raise AssertionError(question)


def test_a_thought_says_what_the_answer_follows_from_and_no_more() -> None:
    for record in records(3, 6, 50):
        assert record.thought == evidence(record.question, scene(record.caption, 9)), record


def test_the_evidence_is_the_cells_of_the_thought() -> None:
    kinds = set()
    for record in records(3, 6, 50):
        cells = re.findall("[a-h][1-8]", record.thought)
        edges = [("abc".index(cell[0]) / 3, (int(cell[1]) - 1) / 3) for cell in cells]
        assert [(region.left, region.top) for region in record.evidence] == edges, record
        assert all(r.right - r.left == pytest.approx(1 / 3) == r.bottom - r.top for r in record.evidence)
        kinds.add((record.kind, len(record.evidence)))
    assert kinds == {("attribute", 1), ("content", 1), ("position", 1), ("count", 3), ("compare", 2)}


def test_a_glance_is_right_about_one_cell_and_a_guess_about_several() -> None:
    right = {kind: [r.glance == r.answer for r in records(3, 9, 400) if r.kind == kind] for kind in KINDS}
    for kind in ("attribute", "content", "position"):
        assert all(right[kind])
    # 80 guesses each: one of two things, one of four numbers
    assert 0.3 < np.mean(right["compare"]) < 0.7
    assert 0.1 < np.mean(right["count"]) < 0.4
    assert {r.answer for r in records(3, 9, 200) if r.kind == "count"} == {"0", "1", "2", "3"}


def test_a_record_is_a_pure_function_of_its_place() -> None:
    def key(record: Record) -> tuple:
        return record.question, record.thought, record.answer, record.glance, record.caption, record.image.tobytes()

    source = VisualSearch(0, 3, 5)
    expected = key(source.record("train", 7))
    for i in (3, 7, 90, 7):
        found = key(source.record("train", i))
        assert (found == expected) == (i == 7)
    assert key(VisualSearch(0, 3, 5).record("train", 7)) == expected
    assert key(source.record("held_out", 7)) != expected
    assert key(VisualSearch(1, 3, 5).record("train", 7)) != expected


def test_train_and_held_out_share_no_scene_whatever_the_seed() -> None:
    # two shapes in a 2 × 2 grid make 6 · 16² = 1536 scenes: without the split, 300 and 300 records would share dozens
    scenes = {}
    for split in ("train", "held_out"):
        found = [r for seed in (0, 1) for r in records(2, 2, 150, split, seed, digits=False)]
        scenes[split] = {tuple(sorted(scene(r.caption, 4).items())) for r in found}
    assert len(scenes["train"]) > 100
    assert len(scenes["held_out"]) > 50
    assert not scenes["train"] & scenes["held_out"]


def test_train_and_held_out_share_no_handwritten_digit() -> None:
    sources = digit_images()
    train = {pixels.tobytes() for (_, split), images in sources.items() if split == "train" for pixels in images}
    held_out = {pixels.tobytes() for (_, split), images in sources.items() if split == "held_out" for pixels in images}
    assert len(train) > 1400
    assert len(held_out) > 350
    assert not train & held_out
    assert {digit for digit, _ in sources} == set(DIGITS)


@pytest.mark.parametrize("grid", range(2, 9))
def test_every_word_is_in_the_vocabulary(grid: int) -> None:
    tokenizer = build_tokenizer(words())
    for objects in {2, grid**2}:
        for record in records(grid, objects, 5):
            for text in (
                record.question,
                record.answer,
                record.thought,
                record.glance,
                record.caption,
                record.caption_question,
            ):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert tokenizer.unk_token_id not in ids, text
                assert len(ids) == len(text.split())  # one token a word


def test_without_digits_there_are_only_shapes_and_circles_are_counted() -> None:
    assert {r.question.split()[2] for r in records(3, 5, 20, digits=False) if r.kind == "count"} == {"circles"}
    things = {thing_of(cell) for r in records(3, 5, 20, digits=False) for cell in scene(r.caption, 9).values() if cell}
    assert things == set(SHAPES)
    assert things < {thing_of(cell) for r in records(3, 5, 20) for cell in scene(r.caption, 9).values() if cell}


@pytest.mark.parametrize(
    ("grid", "objects", "complaint"), [(1, 2, "grid"), (9, 2, "grid"), (3, 1, "obj"), (3, 10, "obj")]
)
def test_impossible_boards_are_refused(grid: int, objects: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        VisualSearch(0, grid, objects)


def test_a_board_that_never_admits_a_question_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visual_search, "_MAX_SCENES", 50)
    crowded = VisualSearch(seed=0, grid=8, objects=64, digits=False)
    complaint = "data.objects=64, data.digits=false admits a 'compare' .* use fewer objects or data.digits=true"
    with pytest.raises(DataError, match=complaint):
        crowded.record("train", KINDS.index("compare"))


def test_a_caption_may_name_some_positions_only() -> None:
    whole, some = VisualSearch(0, 5, 6), VisualSearch(0, 5, 6, described=8)
    for index in range(10):
        full, part = whole.record("train", index), some.record("train", index)
        named = part.caption_question.split()[1:]
        assert len(named) == 8 and part.caption.count("empty") == 4
        assert named == [p for p in full.caption_question.split()[1:] if p in named]  # in the same order
        assert scene(part.caption, 8).items() <= scene(full.caption, 25).items()
        assert (part.question, part.answer, part.search) == (full.question, full.answer, full.search)
    assert VisualSearch(0, 2, 3, described=3).record("train", 0).caption.count("empty") == 1
