"""Video-MMMU: what a lecture teaches, in three tracks (Hu et al., arXiv 2501.13826; lmms-lab/VideoMMMU).

Released as parquet `<track>/test-*.parquet` (id, question, options, answer, question_type) with the videos in a folder
for each discipline. A video ends with the picture of its adaptation question, so no other is given. Prompts and
rule are those of the authors' task in lmms-eval: the letter by MMMU's rule in the order `A.`, `A:`, `(A)`, `A `; the
few open questions of the adaptation track by MMMU's rule for open answers, without a language model. As there, a
question whose type is not `multiple-choice` is open, and its options are not shown. The authors leave an empty open
answer out of the mean; here it is wrong. Score: accuracy over all questions, then per track.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ral_system.benchmarks import columns, files, letters, open_answer, tally
from ral_system.benchmarks.item import BadItem, Item, MediaFile, Scored

ABOUT = "learning from lectures"
FILES = "<track>/test-*.parquet, <discipline>/<id>.mp4"

TRACKS = ("Perception", "Comprehension", "Adaptation")
DISCIPLINES = ("Art", "Business", "Science", "Medicine", "Humanities", "Engineering")
FORMS: letters.Forms = (("{}.", "{}."), ("{}:", "{}:"), ("({})", "({})"), ("{} ", " {} "))
LEARN = (
    "You should watch and learn the video content. Then apply what you learned to answer the following {} question. "
    "The image for this question is at the end of the video."
)
IGNORE = "Please ignore the Quiz question in last frame of the video."


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The questions of all tracks."""
    for track in TRACKS:
        yield from files.each(files.shards(folder, f"{track}/test-*.parquet"), track, partial(_item, folder, track))


def _item(folder: Path, track: str, fields: files.Fields) -> Item:
    id, question, answer = (columns.text(fields, column) for column in ("id", "question", "answer"))
    video = files.first_file(folder, *(f"{discipline}/{id}.mp4" for discipline in DISCIPLINES))
    chosen = fields.get("question_type") == "multiple-choice"
    options = letters.without_letters(columns.texts(fields, "options")) if chosen else ()
    text = f"{question}\n{letters.lettered(options)}" if chosen else question
    if track == "Adaptation":
        text = f"{LEARN.format('multi-choice' if chosen else 'open-ended')}\n{text}"
    else:
        text = f"{text}\n{IGNORE}"
    return Item(
        id=f"{track}/{id}",
        category=track,
        text=f"<video>\n{text}",
        media=(MediaFile("video", path=video),),
        references=(letters.checked_letter(answer, options) if chosen else answer,),
        options=options,
    )


def score(item: Item, response: str) -> float:
    """1 for the option's letter, or for an open answer that is right."""
    if item.options:
        return float(letters.stated_letter(response, item.options, FORMS) in item.references)
    return float(open_answer.right(response, item.references[0]))


def summary(scores: Scored) -> dict[str, float]:
    """Accuracy over all questions and per track, in percent."""
    return tally.accuracy(scores)
