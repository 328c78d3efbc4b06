"""BLINK: 14 tasks of perception, validation set (Fu et al., arXiv 2404.12390; BLINK-Benchmark/BLINK).

Released as parquet `<task>/val-*.parquet` (idx, prompt, choices, answer `(A)`, image_1 … image_4). The prompt is the
authors' column `prompt`, after the pictures. Rule (`eval/test_benchmark.py`): the letter alone, or the one bracketed
letter among the words of the last paragraph, or of all. What is left the authors ask GPT-3.5 about; here the common
rule reads it, and what that cannot read is wrong. Score: mean of the tasks' accuracies, then per task.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

from ral_system.benchmarks import columns, files, letters, tally
from ral_system.benchmarks.item import BadItem, Item, Scored

ABOUT = "14 tasks of perception"
FILES = "<task>/val-*.parquet for each task"

TASKS = (
    *("Visual_Similarity", "Counting", "Relative_Depth", "Jigsaw", "Art_Style", "Functional_Correspondence"),
    *("Semantic_Correspondence", "Spatial_Relation", "Object_Localization", "Visual_Correspondence"),
    *("Multi-view_Reasoning", "Relative_Reflectance", "Forensic_Detection", "IQ_Test"),
)
PICTURES = ("image_1", "image_2", "image_3", "image_4")


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The questions of all tasks."""
    for task in TASKS:

        def build(fields: files.Fields, task: str = task) -> Item:
            options = columns.texts(fields, "choices")
            media = tuple(columns.picture(fields, column, folder) for column in PICTURES if fields.get(column))
            return Item(
                id=columns.text(fields, "idx"),
                category=task,
                text="<image>" * len(media) + f"\n{columns.text(fields, 'prompt')}",
                media=media,
                references=(letters.checked_letter(columns.text(fields, "answer"), options),),
                options=options,
            )

        yield from files.each(files.shards(folder, f"{task}/val-*.parquet"), task, build)


def score(item: Item, response: str) -> float:
    """1 for the option's letter."""
    return float(_letter(response.strip(), item) in item.references)


def _letter(answer: str, item: Item) -> str | None:
    known = ascii_uppercase[: len(item.options)]
    if len(answer) == 1:
        return answer if answer in known else None
    for part in (answer.split("\n\n")[-1], answer):
        words = set(part.split())
        bracketed = [letter for letter in known if f"({letter})" in words]
        if len(bracketed) == 1:
            return bracketed[0]
    return letters.common_letter(answer, item.options)


def summary(scores: Scored) -> dict[str, float]:
    """Mean over the tasks that were asked, and per task, in percent."""
    tasks = tally.by(tally.category, scores)
    return {"score": tally.mean(tasks.values()), **tasks}
