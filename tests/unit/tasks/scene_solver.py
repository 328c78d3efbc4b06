"""Answers to questions about generated scenes, worked out from the question's text and the whole scene."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from ral_system.tasks.cells import ARROWS, place_of, position_name
from ral_system.tasks.looking import Looking, Scene


def solve(question: str, scene: Scene) -> str | None:
    """Return the only answer; None if the scene has none, or several."""
    cells = {place: scene.cell(place) for place in scene.filled()}

    def only(thing: str, *colour: str, board: int | None = None) -> tuple[int, str] | None:
        found = [
            place
            for place, cell in cells.items()
            if cell.thing == thing and cell.colour in (colour or cell.colour) and board in (None, place[0])
        ]
        return found[0] if len(found) == 1 else None

    match question.removesuffix(" ?").split():
        case ["where", "is", "the", thing, colour]:
            at = only(thing, colour)
            return at and at[1]
        case ["which", "digit", "is", "on", "the", thing, colour]:
            at = only(thing, colour)
            return at and cells[at].mark
        case ["how", "many", thing, colour, "are", "from", first, "to", last]:
            (top, left), (bottom, right) = place_of(first), place_of(last)
            inside = [(0, position_name(r, c)) for r in range(top, bottom + 1) for c in range(left, right + 1)]
            return str(sum((cells[p].thing, cells[p].colour) == (thing, colour) for p in inside))
        case ["follow", "the", "arrows", "from", position, *_]:
            seen: set[str] = set()
            while position not in seen and (0, position) in cells and cells[0, position].thing in ARROWS:
                seen.add(position)
                (row, column), (down, right) = place_of(position), ARROWS[cells[0, position].thing]
                if not (0 <= row + down < scene.grid and 0 <= column + right < scene.grid):
                    return None
                position = position_name(row + down, column + right)
            return None if position in seen else cells[0, position].words
        case ["the", thing, "is", _, "what", "colour", "is", "it"]:
            at = only(thing)
            return at and cells[at].colour
        case ["what", "is", "in", "the", "second", "where", "the", thing, colour, "is", "in", "the", "first"]:
            at = only(thing, colour, board=0)
            return at and cells[1, at[1]].words
    raise AssertionError(f"unknown question {question!r}")


def best_blind_guess(fitted: Looking, asked: Looking, count: int) -> float:
    """Return the accuracy on `asked` of the best guesser without a picture: the most frequent answer of `count`
    records of `fitted`, overall, to the same question, or to questions with the same word at one place.
    """

    def clues(question: str) -> list[tuple[object, ...]]:
        words = question.split()
        return [("any",), ("all", question), *(("word", i, word) for i, word in enumerate(words))]

    seen: dict[tuple[object, ...], Counter[str]] = defaultdict(Counter)
    for _, one in questions(fitted, count):
        for clue in clues(one[0]):
            seen[clue][one[1]] += 1
    right: Counter[int] = Counter()
    for _, (question, answer) in questions(asked, count):
        for rule, clue in enumerate(clues(question)):
            right[rule] += bool(seen[clue]) and seen[clue].most_common(1)[0][0] == answer
    return max(right.values()) / count


def questions(source: Looking, count: int) -> Iterable[tuple[Scene, tuple[str, str]]]:
    """Return the first training scenes, with question and answer."""
    for i in range(count):
        scene, asked = source.asked("train", i)
        yield scene, (asked.question, asked.answer)
