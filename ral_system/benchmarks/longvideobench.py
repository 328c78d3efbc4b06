"""LongVideoBench: referring questions about long videos, validation set (Wu et al., arXiv 2407.15754).

Released as `lvb_val.json` (id, question, candidates, correct_choice, duration_group, video_path, …) with `videos/`.
The prompt is the authors' (`longvideobench_dataset.py`), without the subtitles that their loader can put between
frames. Rule (lmms-eval, after the authors): the first of the capitals A to E; they guess at random where
there is none, here that is wrong. Score: accuracy over all questions, then per group of durations (seconds, at most).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

from ral_system.benchmarks import columns, files, letters, tally
from ral_system.benchmarks.item import BadItem, Item, MediaFile, Scored
from ral_system.data.sources.files import read_rows
from ral_system.errors import DataError

ABOUT = "referring to long videos"
FILES = "lvb_val.json, videos/"

REQUEST = "Answer with the option's letter from the given choices directly."


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The questions of the validation set."""

    def build(fields: files.Fields) -> Item:
        options, choice = columns.texts(fields, "candidates"), fields.get("correct_choice")
        if not isinstance(choice, int) or not 0 <= choice < len(options):
            raise DataError(f"correct_choice: {choice} is not one of the {len(options)} candidates")
        video = files.first_file(folder, f"videos/{columns.text(fields, 'video_path')}")
        return Item(
            id=columns.text(fields, "id"),
            category=f"{columns.identifier(fields, 'duration_group')} s",
            text=f"<video>\nQuestion: {columns.text(fields, 'question')}\n{letters.lettered(options)}\n{REQUEST}",
            media=(MediaFile("video", path=video),),
            references=(ascii_uppercase[choice],),
            options=options,
        )

    return files.each(read_rows(folder / "lvb_val.json"), "lvb_val.json", build)


def score(item: Item, response: str) -> float:
    """1 for the option's letter."""
    return float(letters.first_letter(response, "ABCDE") in item.references)


def summary(scores: Scored) -> dict[str, float]:
    """Accuracy over all questions and per group of durations, in percent."""
    return tally.accuracy(scores)
