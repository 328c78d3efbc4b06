"""VizWiz-VQA: questions of blind people about their photographs, validation set (Gurari et al., arXiv 1802.08218).

Released as `val.json`, in `Annotations/` or not (image, question, ten answers, answer_type), with pictures in `val/`.
Rule (the authors' VizWiz API): VQA accuracy of the answer in VQA's writing; people's answers were released in it.
The prompt is that of LLaVA and lmms-eval: it asks for one word or phrase, and says when to answer `Unanswerable`.
Score: mean accuracy over all questions, then per type of answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ral_system.benchmarks import columns, files, tally, vqa
from ral_system.benchmarks.item import BadItem, Item, MediaFile, Scored
from ral_system.data.sources.files import read_rows
from ral_system.errors import DataError

ABOUT = "photographs taken by blind people"
FILES = "Annotations/val.json, val/"

PROMPT = (
    "When the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase."
)
PEOPLE = 10


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The questions of the validation set."""

    def build(fields: files.Fields) -> Item:
        image = columns.text(fields, "image")
        return Item(
            id=image,
            category=columns.text(fields, "answer_type"),
            text=f"<image>\n{columns.text(fields, 'question')}\n{PROMPT}",
            media=(MediaFile("image", path=files.first_file(folder, f"val/{image}")),),
            references=_answers(fields.get("answers")),
        )

    return files.each(read_rows(files.first_file(folder, "Annotations/val.json", "val.json")), "val.json", build)


def _answers(value: object) -> tuple[str, ...]:
    answers = [one.get("answer") if isinstance(one, dict) else None for one in value] if isinstance(value, list) else []
    if len(answers) != PEOPLE or not all(isinstance(one, str) for one in answers):
        raise DataError(f"answers: not the answers of {PEOPLE} people")
    return tuple(str(one) for one in answers)


def score(item: Item, response: str) -> float:
    """Agreement with the ten people."""
    return vqa.accuracy(vqa.normalised(response), item.references)


def summary(scores: Scored) -> dict[str, float]:
    """Mean accuracy over all questions and per type of answer, in percent."""
    return tally.accuracy(scores)
