"""V* Bench: small objects in large pictures (Wu and Xie, arXiv 2312.14135; craigwu/vstar_bench).

Released as `test_questions.jsonl` (image, text, category, label, question_id) beside the folders of pictures
`direct_attributes/` and `relative_position/`; a text holds its options `(A) red` and the request for a letter.
The authors' own model ranks the options by likelihood. Models that answer in words are asked these texts, and their
letter is read by the common rule. Score: accuracy over all questions, then per category.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ral_system.benchmarks import columns, files, letters, tally
from ral_system.benchmarks.item import BadItem, Item, Scored
from ral_system.data.sources.files import read_rows

ABOUT = "small objects in large pictures"
FILES = "test_questions.jsonl and its folders of pictures"

_OPTION = re.compile(r"^\([A-Z]\)[ \t]*(.+?)[ \t]*$", re.MULTILINE)


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The questions of both categories."""

    def build(fields: files.Fields) -> Item:
        image, text = columns.text(fields, "image"), columns.text(fields, "text")
        options = tuple(_OPTION.findall(text))
        return Item(
            id=image.rpartition(".")[0] or image,
            category=columns.text(fields, "category"),
            text=f"<image>\n{text}",
            media=(columns.picture(fields, "image", folder),),
            references=(letters.checked_letter(columns.text(fields, "label"), options),),
            options=options,
        )

    return files.each(read_rows(folder / "test_questions.jsonl"), "test_questions.jsonl", build)


def score(item: Item, response: str) -> float:
    """1 for the option's letter."""
    return float(letters.common_letter(response, item.options) in item.references)


def summary(scores: Scored) -> dict[str, float]:
    """Accuracy over all questions and per category, in percent."""
    return tally.accuracy(scores)
