"""MMMU-Pro: expert questions, ten options, in text and as screenshots (Yue et al., arXiv 2409.02813; MMMU/MMMU_Pro).

Released as parquet in `standard (10 options)/` (question, options as a written list, answer, image_1 … image_7,
subject) and `vision/` (image, options, answer, subject). Prompts are the authors' for direct answers
(`mmmu-pro/prompts.yaml`); `<image 3>` in a question or option is the picture image_3, wherever the option stands.
Rule (`mmmu-pro/evaluate.py`): the one letter after the last `Answer:`, else MMMU's rule; it guesses at random where
there is no letter, here that is wrong. Score: mean of the accuracies of both settings; then each, then per subject.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

from ral_system.benchmarks import columns, files, letters, tally
from ral_system.benchmarks.item import BadItem, Item, Scored
from ral_system.errors import DataError

ABOUT = "expert questions, ten options"
FILES = "standard (10 options)/test-*.parquet, vision/test-*.parquet"

DIRECT = "Answer with the option letter from the given choices directly."
DIRECT_VISION = (
    f"{DIRECT} The last line of your response should be of the following format: 'Answer: $LETTER' (without quotes) "
    "where LETTER is one of options."
)

_REFERENCE = re.compile(r"<image\s+(\d+)>")
_ANSWER = "Answer:"


def items(folder: Path) -> Iterator[Item | BadItem]:
    """The standard questions, then the screenshots."""

    def standard(fields: files.Fields) -> Item:
        options = _options(fields)
        text = f"{columns.text(fields, 'question')}\n{letters.lettered(options)}\n{DIRECT}"
        return Item(
            id=f"standard/{columns.text(fields, 'id')}",
            category=columns.text(fields, "subject"),
            text=_REFERENCE.sub("<image>", text),
            media=tuple(columns.picture(fields, f"image_{number}", folder) for number in _REFERENCE.findall(text)),
            references=(letters.checked_letter(columns.text(fields, "answer"), options),),
            options=options,
            part="standard",
        )

    def vision(fields: files.Fields) -> Item:
        options = _options(fields)
        return Item(
            id=f"vision/{columns.text(fields, 'id')}",
            category=columns.text(fields, "subject"),
            text=f"<image>\n{DIRECT_VISION}",
            media=(columns.picture(fields, "image", folder),),
            references=(letters.checked_letter(columns.text(fields, "answer"), options),),
            options=options,
            part="vision",
        )

    yield from files.each(files.shards(folder, "standard (10 options)/test-*.parquet"), "standard", standard)
    yield from files.each(files.shards(folder, "vision/test-*.parquet"), "vision", vision)


def _options(fields: files.Fields) -> tuple[str, ...]:
    try:
        options = ast.literal_eval(columns.text(fields, "options"))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise DataError("options: not a list as Python writes it") from None
    return columns.texts({"options": options}, "options")


def score(item: Item, response: str) -> float:
    """1 for the option's letter."""
    _, announced, answer = response.rpartition(_ANSWER)
    if announced:
        named = [letter for letter in ascii_uppercase[: len(item.options)] if letter in answer]
        if len(named) == 1:
            return float(named[0] in item.references)
    return float(letters.stated_letter(response, item.options, letters.MMMU) in item.references)


def summary(scores: Scored) -> dict[str, float]:
    """Mean of the settings that were asked, each setting, and subjects over both, in percent."""
    settings = tally.by(lambda item: item.part, scores)
    return {"score": tally.mean(settings.values()), **settings, **tally.by(tally.category, scores)}
