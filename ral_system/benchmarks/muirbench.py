"""MuirBench: questions about several pictures (Wang et al., arXiv 2406.09411; MUIRBENCH/MUIRBENCH).

Released as parquet `data/test-*.parquet` (idx, task, question, options, answer, image_list, …); `<image>` stands in
questions and options where pictures do; in a text without it they come first. Prompt and rule are the authors'
(`eval/utils/preprocess.py`, `postprocess.py`): MMMU's rule with letters that stand alone, which guesses at random where
there is none; here that is wrong. Score: accuracy over all questions, then per task.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ral_system.benchmarks import columns, files, letters, tally
from ral_system.benchmarks.item import BadItem, Item, Scored

ABOUT = "several pictures a question"
FILES = "data/test-*.parquet"

FORMS: letters.Forms = (("({})", "({})"), (" {} ", " {} "))
HINT = "Hint: Please provide the correct option letter, such as A, B, C, D, directly."


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The questions of all tasks."""

    def build(fields: files.Fields) -> Item:
        options = columns.texts(fields, "options")
        choices = letters.lettered(options, "({}) {}")
        media = columns.pictures(fields, "image_list", folder)
        text = f"Question: {columns.text(fields, 'question')}\nChoices:\n{choices}\n{HINT}\nAnswer:"
        return Item(
            id=columns.identifier(fields, "idx"),
            category=columns.text(fields, "task"),
            text=text if "<image>" in text else "<image>" * len(media) + f"\n{text}",
            media=media,
            references=(letters.checked_letter(columns.text(fields, "answer"), options),),
            options=options,
        )

    return files.each(files.shards(folder, "data/test-*.parquet"), "test", build)


def score(item: Item, response: str) -> float:
    """1 for the option's letter."""
    return float(letters.stated_letter(response, item.options, FORMS) in item.references)


def summary(scores: Scored) -> dict[str, float]:
    """Accuracy over all questions and per task, in percent."""
    return tally.accuracy(scores)
