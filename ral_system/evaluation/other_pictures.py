"""Figures of an evaluation whose questions show other pictures than their own, or only parts of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ral_system.config.commands import EvaluateConfig
from ral_system.evaluation.attended import attended_parts
from ral_system.evaluation.blind import blackened, exchanged
from ral_system.evaluation.looks import Look
from ral_system.evaluation.questions import Figures, Questions, figures
from ral_system.evaluation.subject import Subject
from ral_system.models.loading import load_family
from ral_system.types import Prompt

Columns = dict[str, dict[str, float]]
"""Figures by name, for each way of showing the questions."""


def without_own_pictures(config: EvaluateConfig, subject: Subject, questions: Questions) -> Columns:
    """Ask with `black` pictures, and with those of other questions (`exchanged`), if `evaluation.blind` is set."""
    if not config.evaluation.blind:
        return {}
    without = {"black": blackened(questions.prompts, subject.media), "exchanged": exchanged(questions.prompts)}
    return _figures(config, subject, questions, {name: prompts for name, prompts in without.items() if prompts})


def with_parts(
    config: EvaluateConfig, subject: Subject, questions: Questions, found: Figures, looks: Mapping[str, Look]
) -> Columns:
    """Ask with parts of the pictures (`attended_parts`), if `evaluation.attended` is set."""
    if config.evaluation.attended is None:
        return {}
    by_question = {
        prompt.id: np.mean([looks[c.id].visual for c in found.answers[prompt.id]], axis=0)
        for prompt in questions.prompts
        if prompt.media
    }
    family = load_family(subject.model)
    parts = attended_parts(questions.prompts, by_question, config.evaluation.attended, family)
    return _figures(config, subject, questions, parts)


def _figures(
    config: EvaluateConfig, subject: Subject, questions: Questions, shown: Mapping[str, Sequence[Prompt]]
) -> Columns:
    return {
        name: dict(figures(config, subject, replace(questions, prompts=prompts), label=name).values)
        for name, prompts in shown.items()
    }
