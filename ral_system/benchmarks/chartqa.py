"""ChartQA: questions about charts (Masry et al., arXiv 2203.10244; vis-nlp/ChartQA).

Released as `test/test_human.json` and `test/test_augmented.json` (imgname, query, label) with `test/png/`.
Rule (section 5.1, after PlotQA): relaxed accuracy. A number is right within 5 % of the gold number, other answers by
the same words; as in pix2struct's widely used code, `12%` is 0.12, a gold 0 asks for the same text, case does not
count and thousands separators are not read. The request for a short answer is that of lmms-eval. Score: accuracy over
all questions (both halves have 1,250), then for human and augmented questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ral_system.benchmarks import columns, files, tally
from ral_system.benchmarks.item import BadItem, Item, MediaFile, Scored
from ral_system.data.sources.files import read_rows

ABOUT = "questions about charts"
FILES = "test/test_human.json, test/test_augmented.json, test/png/"

TOLERANCE = 0.05


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The human questions, then the augmented ones."""
    for half in ("human", "augmented"):
        name = f"test_{half}.json"
        for row in read_rows(folder / "test" / name):
            yield from files.each([row], name, partial(_item, folder, half, row.number))


def _item(folder: Path, half: str, number: int, fields: files.Fields) -> Item:
    image = files.first_file(folder, f"test/png/{columns.text(fields, 'imgname')}")
    return Item(
        id=f"{half}/{number}",
        category=half,
        text=f"<image>\n{columns.text(fields, 'query')}\nAnswer the question using a single word or phrase.",
        media=(MediaFile("image", path=image),),
        references=(columns.text(fields, "label"),),
    )


def score(item: Item, response: str) -> float:
    """1 within the tolerance, or for the same text."""
    return float(relaxed(response.strip(), item.references[0]))


def relaxed(given: str, gold: str) -> bool:
    """Return whether an answer is right by relaxed accuracy."""
    x, y = _number(given), _number(gold)
    if x is None or not y:
        return given.lower() == gold.lower()
    return abs(x - y) / abs(y) <= TOLERANCE


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def summary(scores: Scored) -> dict[str, float]:
    """Relaxed accuracy over all questions and per half, in percent."""
    return tally.accuracy(scores)
