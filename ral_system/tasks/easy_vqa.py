"""easy-VQA as rows for `data=files`: `python -m ral_system.tasks.easy_vqa FOLDER`, with its PyPI package installed.

48,248 questions on 5,000 pictures of 64 × 64 pixels, each with one coloured shape (V. Zhou, MIT licence). Its own test
questions are held out.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from ral_system.errors import RalError, SetupError
from ral_system.observability.jsonl import dump, write_atomically

SHAPES = ("circle", "rectangle", "triangle")


def main() -> None:
    """Write train.jsonl, test.jsonl and pictures/ to the folder that the command line names."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"{__doc__}\nusage: python -m ral_system.tasks.easy_vqa FOLDER")
    try:
        for split, rows in write_rows(package_data(), Path(sys.argv[1])).items():
            print(f"{sys.argv[1]}/{split}.jsonl: {rows:,} questions")
    except RalError as error:
        sys.exit(f"error: {error}")


def package_data() -> Path:
    """The folder in which the package easy-vqa keeps its questions and pictures. Raises SetupError without it."""
    found = importlib.util.find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise SetupError("the package easy-vqa is not installed; pip install easy-vqa")
    return Path(found.origin).parent / "data"


def write_rows(source: Path, folder: Path) -> dict[str, int]:
    """Write a row for every question of `source`, as easy-VQA lays its files out, and copy the pictures; return how
    many questions each split has.
    """
    counts = {}
    for split in ("train", "test"):
        pictures = folder / "pictures" / split
        shutil.copytree(source / split / "images", pictures, dirs_exist_ok=True)
        questions = json.loads((source / split / "questions.json").read_text(encoding="utf-8"))
        rows = [_row(question, answer, f"pictures/{split}/{picture}.png") for question, answer, picture in questions]
        write_atomically(folder / f"{split}.jsonl", "".join(dump(row) + "\n" for row in rows))
        counts[split] = len(rows)
    return counts


def _row(question: str, answer: str, picture: str) -> dict[str, Any]:
    kind = "yes or no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "colour"
    return {"question": question, "answer": answer, "kind": kind, "picture": picture}


if __name__ == "__main__":
    main()
