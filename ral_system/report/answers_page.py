"""Page of an evaluation's answers: every question with its media, its answers and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ral_system.observability.jsonl import write_atomically
from ral_system.report.media import ReportMedia
from ral_system.report.page import page
from ral_system.report.rollouts import chip, question_cell, response_text

SHOWN = 100


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and all answers to it.

    Example: `Answered({"id": "sa_1", "kind": "colour", "question": "…", "answer": "A", "media": […]}, ("B", "A"),
    (0.0, 1.0))`
    """

    question: Mapping[str, Any]
    """Record as in `rollouts.jsonl`: id, kind, question, answer, media."""
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    """Scores in [0, 1], one per response."""
    notes: tuple[str, ...] = ()
    """Reasons why a response has no verdict, empty if it has one; one per response, or none at all."""

    @property
    def score(self) -> float:
        """Mean score over the responses."""
        return sum(self.scores) / len(self.scores)


def write_answers_page(
    path: Path, title: str, answered: Sequence[Answered], media: ReportMedia, left_out: str = ""
) -> None:
    """Write at most `SHOWN` questions: half of them those with the lowest scores, the others those with the highest.

    `left_out` says which questions were not asked.
    """
    by_score = sorted(answered, key=lambda a: a.score)
    wrong = [a for a in by_score if a.score < 1]
    shown = by_score if len(by_score) <= SHOWN else [*wrong[: SHOWN // 2], *by_score[::-1][: SHOWN // 2]]
    full = len(answered) - len(wrong)
    lead = f"{len(answered)} questions, {full} with full score; {len(shown)} shown, the lowest scores first."
    lead += f" {left_out}." if left_out else ""
    rows = "".join(_row(a, media) for a in shown)
    body = (
        f'<header><h1>{escape(title)}</h1></header><section id="answers"><p class="lead">{escape(lead)}</p>'
        '<div class="scroll"><table class="training"><thead><tr><th>Question</th><th>Answers</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )
    write_atomically(path, page(title, body))


def _row(answered: Answered, media: ReportMedia) -> str:
    notes = answered.notes or ("",) * len(answered.responses)
    answers = "".join(
        f'<div class="answer"><div><p class="response">{response_text({"response": response})}</p>'
        f'<p class="chips">{chip("score", score)}{_note(note)}</p></div></div>'
        for response, score, note in zip(answered.responses, answered.scores, notes, strict=True)
    )
    id = escape(str(answered.question.get("id", "")))
    return f'<tr data-question="{id}"><td>{question_cell(answered.question, media)}</td><td>{answers}</td></tr>'


def _note(note: str) -> str:
    return f'<span class="chip bad">{escape(note)}</span>' if note else ""
