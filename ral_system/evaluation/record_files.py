"""Files of an evaluation: the record, the score of every answer, and a page with the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ral_system.evaluation.questions import Figures
from ral_system.evaluation.subject import Subject
from ral_system.observability.jsonl import dump, write_atomically
from ral_system.report.answers_page import write_answers_page
from ral_system.report.media import ReportMedia


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `evaluation.json`."""
    write_atomically(folder / "evaluation.json", json.dumps(record, indent=2))


def write_scores(folder: Path, found: Figures) -> None:
    """Write `scores.jsonl`: each question's category, references and the score of each answer."""
    lines = (
        {
            "id": a.question["id"],
            "category": a.question["kind"],
            "references": a.question["answer"],
            "scores": list(a.scores),
        }
        for a in found.answered
    )
    write_atomically(folder / "scores.jsonl", "".join(dump(line) + "\n" for line in lines))


def write_answers(subject: Subject, found: Figures) -> Path:
    """Write `answers.html`, every question with its answers, and return its path."""
    path = subject.folder / "answers.html"
    media = ReportMedia(subject.folder / "media", subject.media.frames)
    write_answers_page(path, f"{subject.model.name}: {found.title}", found.answered, media, found.left_out)
    return path
