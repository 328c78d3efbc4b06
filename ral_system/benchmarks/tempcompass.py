"""TempCompass: action, direction, speed, order and change (Liu et al., arXiv 2403.00476; llyx97/TempCompass).

Released as `questions/<task>.json`, a video an entry: aspect -> list of question and answer; the videos are
`videos/<video>.mp4`. Prompts and rules are the authors'. Answers that their rules do not match they give to ChatGPT, or
with `--disable_llm` count as wrong, as is done here. The fourth task, captioning, is scored by ChatGPT alone and is not
offered. Score: accuracy over the questions of the three tasks (the authors give one figure a task), then per task, then
per aspect of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ral_system.benchmarks import columns, files, letters, tally
from ral_system.benchmarks.item import BadItem, Item, MediaFile, Scored
from ral_system.errors import DataError

ABOUT = "action, direction, speed, order, change"
FILES = "questions/multi-choice.json, questions/yes_no.json, questions/caption_matching.json, videos/"

REQUESTS = {
    "multi-choice": "Please directly give the best option:",
    "yes_no": "Please answer yes or no:",
    "caption_matching": "Please directly give the best option:",
}


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The questions of the three tasks that rules can score."""
    for task in REQUESTS:
        for video, aspects in files.read_object(folder / "questions" / f"{task}.json").items():
            if not isinstance(aspects, dict):
                yield BadItem(f"{task}/{video}", f"not lists of questions by aspect but {type(aspects).__name__}")
                continue
            for aspect, questions in aspects.items():
                if not isinstance(questions, list):
                    reason = f"not a list of questions but {type(questions).__name__}"
                    yield BadItem(f"{task}/{video}/{aspect}", reason)
                    continue
                for number, fields in enumerate(questions):
                    id = f"{task}/{video}/{aspect}/{number}"
                    yield files.attempt(id, partial(_item, folder, task, video, aspect, id), fields)


def _item(folder: Path, task: str, video: str, aspect: str, id: str, fields: files.Fields) -> Item:
    question, answer = columns.text(fields, "question"), columns.text(fields, "answer")
    options = () if task == "yes_no" else tuple(line.strip() for line in question.splitlines()[1:] if line.strip())
    if task == "multi-choice":
        letters.checked_letter(answer[:1], options)
    elif answer not in (options or ("yes", "no")):
        raise DataError(f"answer: {answer[:40]!r} is not one of the options")
    return Item(
        id=id,
        category=f"{task}/{aspect}",
        text=f"<video>\n{question}\n{REQUESTS[task]}",
        media=(MediaFile("video", path=files.first_file(folder, f"videos/{video}.mp4")),),
        references=(answer,),
        options=letters.without_letters(options) if task == "multi-choice" else options,
        part=task,
    )


def score(item: Item, response: str) -> float:
    """1 for an answer that the task's rule matches with the right one."""
    answer, reference = response.strip(), item.references[0]
    if item.part == "yes_no":
        return float(answer.lower().startswith(reference))
    if item.part == "multi-choice":
        return float(answer == reference or (answer[:1] == reference[:1] and answer[1:2] in ("", ".", ")")))
    return float(next((option for option in reversed(item.options) if _names(answer, option)), None) == reference)


def _names(answer: str, option: str) -> bool:
    """`Caption A: a man runs`, by its words, by `Caption A` or `A`, or by `A) a man runs`."""
    name, _, sentence = option.partition(": ")
    letter = name.rpartition(" ")[2]
    said = answer.partition(") ")[2] if ") " in answer else answer
    named = {answer, answer.replace(".", "")} & {name, letter}
    return answer in (option, sentence) or said == sentence or bool(named)


def summary(scores: Scored) -> dict[str, float]:
    """Accuracy over all questions, per task, and per aspect of each, in percent."""
    tasks = tally.by(lambda item: item.part, scores)
    return {"score": tally.percent(score for _, score in scores), **tasks, **tally.by(tally.category, scores)}
