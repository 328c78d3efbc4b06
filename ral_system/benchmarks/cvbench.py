"""CV-Bench: counting, relations, depth and distance (Tong et al., arXiv 2406.16860; nyu-visionx/CV-Bench).

Released as `test_2d.parquet` and `test_3d.parquet` (idx, task, image, choices, answer `(A)`, prompt, source). The
prompt is the authors' column, and asks for the letter. They publish no reading of answers: the common rule.
Score (dataset card): half of 3D, the accuracy on Omni3D, and half of 2D, the mean of the accuracies on ADE20K and
COCO; then 2D and 3D, the sources and the tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ral_system.benchmarks import columns, files, letters, tally
from ral_system.benchmarks.item import BadItem, Item, Scored
from ral_system.data.sources.files import read_rows
from ral_system.errors import DataError

ABOUT = "spatial relations in 2D and 3D"
FILES = "test_2d.parquet, test_3d.parquet"

SOURCES = {"ADE20K": "2D", "COCO": "2D", "Omni3D": "3D"}
REQUEST = "Answer with the option's letter from the given choices directly."


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The questions in 2D, then those in 3D."""

    def build(fields: files.Fields) -> Item:
        options, source = columns.texts(fields, "choices"), columns.text(fields, "source")
        if source not in SOURCES:
            raise DataError(f"source: {source} is not one of {', '.join(SOURCES)}")
        return Item(
            id=columns.identifier(fields, "idx"),
            category=columns.text(fields, "task"),
            text=f"<image>\n{columns.text(fields, 'prompt')}\n{REQUEST}",
            media=(columns.picture(fields, "image", folder),),
            references=(letters.checked_letter(columns.text(fields, "answer"), options),),
            options=options,
            part=source,
        )

    for name in ("test_2d.parquet", "test_3d.parquet"):
        yield from files.each(read_rows(folder / name), name, build)


def score(item: Item, response: str) -> float:
    """1 for the option's letter."""
    return float(letters.common_letter(response, item.options) in item.references)


def summary(scores: Scored) -> dict[str, float]:
    """The authors' mean of the parts that were asked, then 2D, 3D, sources and tasks, in percent."""
    sources = tally.by(lambda item: item.part, scores)
    parts = {
        part: tally.mean(figures)
        for part in ("2D", "3D")
        if (figures := [figure for source, figure in sources.items() if SOURCES[source] == part])
    }
    return {"score": tally.mean(parts.values()), **parts, **sources, **tally.by(tally.category, scores)}
