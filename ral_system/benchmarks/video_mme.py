"""Video-MME without subtitles: short, medium and long videos (Fu et al., arXiv 2405.21075; lmms-lab/Video-MME).

Released as parquet `videomme/test-*.parquet` (videoID, question_id, duration, domain, question, options `A. red`,
answer, …) with the videos in `data/`. The prompt is the authors'. Rule (`eval_your_results.py`): the first of the
capitals A to D after phrases that announce an answer. The authors leave answers without a letter out of the mean; here
they are wrong.
Score: accuracy over all questions, then per duration and per domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ral_system.benchmarks import columns, files, letters, tally
from ral_system.benchmarks.item import BadItem, Item, MediaFile, Scored

ABOUT = "short, medium and long videos"
FILES = "videomme/test-*.parquet, data/<video>.mp4"

REQUEST = (
    "Select the best answer to the following multiple-choice question based on the video. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The questions of all durations."""

    def build(fields: files.Fields) -> Item:
        options, name = columns.texts(fields, "options"), columns.text(fields, "videoID")
        video = files.first_file(folder, *(f"data/{name}{suffix}" for suffix in files.VIDEO_SUFFIXES))
        lines = (REQUEST, columns.text(fields, "question"), *options, "The best answer is:")
        return Item(
            id=columns.text(fields, "question_id"),
            category=columns.text(fields, "duration"),
            text="<video>\n" + "\n".join(lines),
            media=(MediaFile("video", path=video),),
            references=(letters.checked_letter(columns.text(fields, "answer"), options),),
            options=letters.without_letters(options),
            part=columns.text(fields, "domain"),
        )

    return files.each(files.shards(folder, "videomme/test-*.parquet"), "test", build)


def score(item: Item, response: str) -> float:
    """1 for the option's letter."""
    return float(letters.first_letter(response, "ABCD") in item.references)


def summary(scores: Scored) -> dict[str, float]:
    """Accuracy over all questions, per duration and per domain, in percent."""
    return {**tally.accuracy(scores), **tally.by(lambda item: item.part, scores)}
