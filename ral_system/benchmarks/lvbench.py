"""LVBench: questions about videos of an hour and more (Wang et al., arXiv 2406.08035; THUDM/LVBench).

Released as `video_info.meta.jsonl`, a video a row: its key, and under `qa` the questions (uid, question with its
options `(A) red`, answer, question_type, time_reference); the videos are `all_videos/<key>.mp4`. The time reference
says where the answer is to be seen: the model is shown the whole video. The request for a letter is that of lmms-eval.
Rule (`answer_util.py`): the first character within the first brackets, or of the answer.
Score: accuracy over all questions, then per ability; a question of two abilities counts for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ral_system.benchmarks import columns, files, letters, tally
from ral_system.benchmarks.item import BadItem, Item, MediaFile, Scored
from ral_system.data.sources.files import read_rows

ABOUT = "videos of an hour and more"
FILES = "video_info.meta.jsonl, all_videos/"

_OPTION = re.compile(r"^[ \t]*\([A-Z]\)[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_BETWEEN = "; "


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The questions of all videos."""
    name = "video_info.meta.jsonl"
    for row in read_rows(folder / name):
        questions = row.fields.get("qa") if row.fields is not None else None
        if row.fields is None or not isinstance(questions, list):
            yield BadItem(f"{name}:{row.number}", row.problem or "qa: not a list of questions")
            continue
        for number, fields in enumerate(questions):
            yield files.attempt(f"{name}:{row.number}/{number}", partial(_item, folder, row.fields), fields)


def _item(folder: Path, video: files.Fields, fields: files.Fields) -> Item:
    question, key = columns.text(fields, "question"), columns.text(video, "key")
    options = tuple(_OPTION.findall(question))
    path = files.first_file(folder, *(f"all_videos/{key}{suffix}" for suffix in files.VIDEO_SUFFIXES))
    return Item(
        id=columns.identifier(fields, "uid"),
        category=_BETWEEN.join(columns.texts(fields, "question_type")),
        text=f"<video>\n{question}\nAnswer the question with the option letter.",
        media=(MediaFile("video", path=path),),
        references=(letters.checked_letter(columns.text(fields, "answer"), options),),
        options=options,
    )


def score(item: Item, response: str) -> float:
    """1 for the option's letter."""
    answer = response.strip().partition(")")[0].strip()
    if "(" in answer:
        answer = answer.split("(")[1].strip()
    return float(answer[:1] in item.references)


def summary(scores: Scored) -> dict[str, float]:
    """Accuracy over all questions and per ability, in percent."""
    abilities: dict[str, list[float]] = {}
    for item, score in scores:
        for ability in item.category.split(_BETWEEN):
            abilities.setdefault(ability, []).append(score)
    overall = tally.percent(score for _, score in scores)
    return {"score": overall, **{ability: tally.percent(values) for ability, values in abilities.items()}}
