"""Figures of an evaluation whose questions show other pictures than their own, or only parts of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ral_system.evaluation.attended import attended_parts
from ral_system.evaluation.blind import blackened, exchanged
from ral_system.evaluation.looks import Look
from ral_system.evaluation.questions import Figures, Judging, Questions, figures
from ral_system.evaluation.subject import Subject
from ral_system.models.loading import load_family
from ral_system.types import Prompt

Columns = dict[str, dict[str, float]]
"""Figures by name, for each way of showing the questions."""


def without_own_pictures(judging: Judging, subject: Subject, questions: Questions) -> Columns:
    """Ask with `black` pictures, and with those of other questions (`exchanged`)."""
    without = {"black": blackened(questions.prompts, subject.media), "exchanged": exchanged(questions.prompts)}
    return _figures(judging, subject, questions, {name: prompts for name, prompts in without.items() if prompts})


def with_parts(
    judging: Judging, subject: Subject, questions: Questions, found: Figures, looks: Mapping[str, Look], share: float
) -> Columns:
    """Ask with the share of the visual tokens that is looked at most, and with other parts (`attended_parts`)."""
    by_question = {
        prompt.id: np.mean([looks[c.id].visual for c in found.answers[prompt.id]], axis=0)
        for prompt in questions.prompts
        if prompt.media
    }
    family = load_family(subject.model)
    parts = attended_parts(questions.prompts, by_question, share, family)
    return _figures(judging, subject, questions, parts)


def _figures(
    judging: Judging, subject: Subject, questions: Questions, shown: Mapping[str, Sequence[Prompt]]
) -> Columns:
    return {
        name: dict(figures(judging, subject, replace(questions, prompts=prompts), label=name).values)
        for name, prompts in shown.items()
    }
