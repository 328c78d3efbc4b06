"""MVBench: 20 tasks that one frame cannot solve (Li et al., arXiv 2311.17005; OpenGVLab/MVBench).

Released as `json/<task>.json` (video, question, candidates, answer in words; start and end where the question is about
a stretch) with the sources' folders in `video/`, some in `video/data0613/`. Videos of `episodic_reasoning` are folders
of frames, three a second; those of `fine_grained_pose` come from NTU RGB+D, and without them its items are bad.
Prompt and rule are the authors' (`video_chat2/mvbench.ipynb`), less the beginning `Best option:(` that they put into
the model's mouth: the first word of the answer is the letter, with or without brackets. Their code takes
an empty answer for right, here it is wrong. Score: accuracy over all questions, then per task.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from string import ascii_uppercase

from ral_system.benchmarks import columns, files, letters, tally
from ral_system.benchmarks.item import BadItem, Item, MediaFile, Scored
from ral_system.data.sources.files import read_rows
from ral_system.errors import DataError

ABOUT = "20 temporal tasks"
FILES = "json/<task>.json for each task, video/"

SYSTEM = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question."
)
REQUEST = "Only give the best option."
FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
STRETCHES = ("action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning")
FRAMES_PER_S = {"episodic_reasoning": 3.0}


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The questions of all tasks."""
    for task in FOLDERS:
        for row in read_rows(folder / "json" / f"{task}.json"):
            yield from files.each([row], f"{task}.json", partial(_item, folder, task, row.number))


def _item(folder: Path, task: str, number: int, fields: files.Fields) -> Item:
    options, answer = columns.texts(fields, "candidates"), str(fields.get("answer")).strip()
    if answer not in options:
        raise DataError(f"answer: {answer[:40]!r} is not one of the candidates")
    start_s, end_s = _stretch(fields) if task in STRETCHES else (None, None)
    name = f"{FOLDERS[task]}/{columns.text(fields, 'video')}"
    path = files.first_below(folder, f"video/{name}", f"video/data0613/{name}")
    if path.is_dir() != (task in FRAMES_PER_S):
        raise DataError(f"video: {path} is {'a folder' if path.is_dir() else 'no folder of frames'}")
    question = f"Question: {columns.text(fields, 'question')}\nOptions:\n{letters.lettered(options, '({}) {}')}"
    return Item(
        id=f"{task}/{number}",
        category=task,
        text=f"<video>\n{SYSTEM}\n{question}\n{REQUEST}",
        media=(MediaFile("video", None, path, start_s, end_s, FRAMES_PER_S.get(task)),),
        references=(ascii_uppercase[options.index(answer)],),
        options=options,
    )


def _stretch(fields: files.Fields) -> tuple[float, float]:
    start, end = fields.get("start"), fields.get("end")
    if not isinstance(start, (int, float)) or not isinstance(end, (int, float)) or not 0 <= start < end:
        raise DataError(f"start, end: {start} to {end} is not a part of the video")
    return float(start), float(end)


def score(item: Item, response: str) -> float:
    """1 for the option's letter."""
    words = response.lower().split()
    letter = item.references[0].lower()
    if not words:
        return 0.0
    word = words[0].replace(".", "")
    return float(word in (letter, f"({letter}", f"{letter})") or f"({letter})" in word)


def summary(scores: Scored) -> dict[str, float]:
    """Accuracy over all questions and per task, in percent."""
    return tally.accuracy(scores)
