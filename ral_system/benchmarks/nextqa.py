"""NExT-QA, multiple choice: why, how and when in short videos, test set (Xiao et al., CVPR 2021; doc-doc/NExT-QA).

Released as `test.csv` (video, question, answer 0 to 4, qid, type, a0 … a4) with `map_vid_vidorID.json`; the videos are
`NExTVideo/<video>.mp4`, or in the folders of VidOR that the map names. Rule (`eval_mc.py`): accuracy of the chosen
option, over all questions, per kind (C causal, T temporal, D descriptive) and per type, previous (TP) counted as next
(TN). The authors choose by a classifier; the request for a letter is that of lmms-eval, the letter is read by the
common rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ral_system.benchmarks import columns, files, letters, tally
from ral_system.benchmarks.item import BadItem, Item, MediaFile, Scored
from ral_system.errors import DataError

ABOUT = "why, how and when in short videos"
FILES = "test.csv, map_vid_vidorID.json, NExTVideo/"

TYPES = ("CW", "CH", "TN", "TC", "DC", "DL", "DO")
OPTIONS = ("a0", "a1", "a2", "a3", "a4")
REQUEST = "Answer with the option's letter from the given choices directly."


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The questions of the test set."""
    places = folder / "map_vid_vidorID.json"
    build = partial(_item, folder, files.read_object(places) if places.exists() else {})
    return files.each(files.read_csv(folder / "test.csv"), "test.csv", build)


def _item(folder: Path, places: files.Fields, fields: files.Fields) -> Item:
    video, answer, kind = (columns.text(fields, column) for column in ("video", "answer", "type"))
    options = tuple(columns.text(fields, column) for column in OPTIONS)
    kind = "TN" if kind == "TP" else kind
    if kind not in TYPES:
        raise DataError(f"type: {kind} is not one of {', '.join(TYPES)}")
    if answer not in ("0", "1", "2", "3", "4"):
        raise DataError(f"answer: {answer[:40]!r} is not one of 0 to 4")
    path = files.first_file(folder, f"NExTVideo/{video}.mp4", f"NExTVideo/{places.get(video, video)}.mp4")
    return Item(
        id=f"{video}_{columns.text(fields, 'qid')}",
        category=kind,
        text=f"<video>\n{columns.text(fields, 'question')}\n{letters.lettered(options)}\n{REQUEST}",
        media=(MediaFile("video", path=path),),
        references=("ABCDE"[int(answer)],),
        options=options,
    )


def score(item: Item, response: str) -> float:
    """1 for the option's letter."""
    return float(letters.common_letter(response, item.options) in item.references)


def summary(scores: Scored) -> dict[str, float]:
    """Accuracy over all questions, per kind and per type, in percent."""
    kinds = tally.by(lambda item: item.category[0], scores)
    return {"score": tally.percent(score for _, score in scores), **kinds, **tally.by(tally.category, scores)}
