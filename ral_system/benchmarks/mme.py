"""MME: two yes-or-no questions a picture, in 14 categories (Fu et al., arXiv 2306.13394).

Released as one folder a category, below `MME_Benchmark_release_version` or its folder `MME_Benchmark`: pictures and
texts side by side, or in `images/` and `questions_answers_YN/`; a text has two lines `question <tab> Yes|No`.
Rule (the authors' `calculation.py`): an answer is yes or no by its first four characters; that full stops are passed
over, and `y` and `n` count, is lmms-eval's. A category has 200 points: percent of right questions plus percent of
pictures with both questions right. Perception is the sum of ten categories (2,000 points), cognition of four (800).
Score: the sum of both. A sum is left out if one of its categories was not asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ral_system.benchmarks import files, tally
from ral_system.benchmarks.item import BadItem, Item, MediaFile, Scored
from ral_system.errors import DataError

ABOUT = "yes or no in 14 categories"
FILES = "a folder for each category, or MME_Benchmark with these"

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_PICTURES = (".jpg", ".png", ".jpeg")
_DECIDES = 4
_A_PICTURE = 2
"""Questions."""


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The questions of all categories. Raises DataError for a category without texts."""
    root = folder / "MME_Benchmark" if (folder / "MME_Benchmark").is_dir() else folder
    for category in (*PERCEPTION, *COGNITION):
        texts = sorted((root / category).glob("*.txt")) or sorted((root / category).glob("questions_answers_YN/*.txt"))
        if not texts:
            raise DataError(f"{root / category}: holds no question texts")
        for path in texts:
            yield from _pair(root, category, path)


def _pair(root: Path, category: str, path: Path) -> Iterator[Item | BadItem]:
    """Both questions about a picture, or a bad item for each: alone neither can have its points."""
    id = f"{category}/{path.stem}"
    ids = [f"{id}/{number}" for number in range(_A_PICTURE)]
    beside = "images/" if path.parent.name == "questions_answers_YN" else ""
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if len(lines) != _A_PICTURE:
            raise DataError(f"{len(lines)} questions, not {_A_PICTURE}")
        names = [f"{category}/{beside}{path.stem}{suffix}" for suffix in _PICTURES]
        media = MediaFile("image", path=files.first_file(root, *names))
        yield from [_item(each, category, id, media, line) for each, line in zip(ids, lines, strict=True)]
    except (DataError, OSError, UnicodeDecodeError) as error:
        yield from (BadItem(each, f"{path.name}: {error}") for each in ids)


def _item(id: str, category: str, picture: str, media: MediaFile, line: str) -> Item:
    question, _, answer = (part.strip() for part in line.rpartition("\t"))
    if not question or answer.lower() not in ("yes", "no"):
        raise DataError(f"{line[:80]!r} is not a question, a tab, and Yes or No")
    return Item(id, category, f"<image>\n{question}", (media,), (answer.lower(),), together=picture)


def score(item: Item, response: str) -> float:
    """1 for the right one of yes and no; anything else is wrong."""
    answer = response.lower().strip().replace(".", "")
    word = {"y": "yes", "n": "no"}.get(answer, answer[:_DECIDES])
    said = next((one for one in ("yes", "no") if one in word), None)
    return float(said in item.references)


def summary(scores: Scored) -> dict[str, float]:
    """Points: in all, of perception, of cognition, each if all its categories were asked, and per category."""
    right = tally.by(tally.category, scores)
    both = tally.by(tally.category, _pictures(scores))
    points = {category: right[category] + both[category] for category in right}
    parts = (("score", (*PERCEPTION, *COGNITION)), ("perception", PERCEPTION), ("cognition", COGNITION))
    sums = {
        name: sum(points[category] for category in of)
        for name, of in parts
        if all(category in points for category in of)
    }
    return {**sums, **points}


def _pictures(scores: Scored) -> Scored:
    """One entry a picture: 1 where both its questions are right."""
    groups: dict[str, list[tuple[Item, float]]] = {}
    for item, score in scores:
        groups.setdefault(item.together, []).append((item, score))
    return [
        (group[0][0], float(len(group) == _A_PICTURE and all(score for _, score in group))) for group in groups.values()
    ]
