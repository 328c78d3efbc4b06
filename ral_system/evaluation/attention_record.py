"""Where a model's questions and answers look, for the record of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ral_system.config.evaluation import MeasurementConfig
from ral_system.config.learner import ForwardConfig
from ral_system.evaluation.intervals import bootstrap, grouped, intervals, unit_of
from ral_system.evaluation.looks import Look, by_layer, measure_looks, summary
from ral_system.evaluation.questions import Figures, scores_of
from ral_system.evaluation.subject import Subject
from ral_system.evaluation.visual_score import measure_visual_score
from ral_system.models.loading import load_family
from ral_system.observability.jsonl import write_atomically
from ral_system.report.heatmap import heatmap
from ral_system.types import Prompt, Sample


@dataclass(frozen=True, slots=True)
class Looking:
    """Where the answers to some questions look."""

    values: Mapping[str, float]
    """Figures of the last layer."""
    intervals: Mapping[str, tuple[float, float]]
    by_layer: Mapping[str, Sequence[float]]
    layers: Sequence[int]
    """Numbers of the layers in `by_layer`."""


def looks_of_answers(
    evaluation: MeasurementConfig, learner: ForwardConfig, subject: Subject, prompts: Sequence[Prompt], found: Figures
) -> dict[str, Look]:
    """Measure where the answers to these questions look, if they have pictures or videos; with `evaluation.saliency`
    also the gradients of the first answers. The engine is ended.
    """
    groups = [tuple(Sample.of(prompt, c) for c in found.answers[prompt.id]) for prompt in prompts if prompt.media]
    if not groups:
        return {}
    subject.release()
    first = prompts[: evaluation.attention_questions] if evaluation.saliency else ()
    return measure_looks(
        subject.model,
        groups,
        subject.media,
        dtype=learner.dtype,
        max_tokens=learner.max_tokens,
        saliency=[completion.id for prompt in first for completion in found.answers[prompt.id]],
    )


def summarise(subject: Subject, looks: Mapping[str, Look], prompts: Sequence[Prompt], found: Figures) -> Looking:
    """Summarise where the answers to these questions look, with intervals over questions."""
    scores = scores_of(found)
    units = grouped(
        (unit_of(prompt), (looks[answer.id], scores[answer.id]))
        for prompt in prompts
        for answer in found.answers[prompt.id]
        if answer.id in looks
    )
    scored = [of_answer for unit in units for of_answer in unit]
    resampled = bootstrap(units, lambda drawn: summary([of_answer for unit in drawn for of_answer in unit]))
    layers = load_family(subject.model).softmax_layers
    return Looking(summary(scored), intervals(resampled), by_layer([of_answer for of_answer, _ in scored]), layers)


def attention_of_questions(learner: ForwardConfig, subject: Subject, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Measure the visual attention score and its masses, overall and by layer and head; empty where undefined.

    Write the score's map, `visual_score.svg`.
    """
    found = measure_visual_score(
        subject.model, prompts, subject.media, dtype=learner.dtype, max_tokens=learner.max_tokens
    )
    if found is None:
        return {}
    note = "Attention of the question's tokens: on pictures / on the system turn."
    title, layers = f"Visual attention score {found.score.mean():.2f}", load_family(subject.model).softmax_layers
    write_atomically(subject.folder / "visual_score.svg", heatmap(found.score.tolist(), title, note, layers))
    parts = {
        "visual_attention_score": found.score,
        "visual_mass": found.visual_mass,
        "system_mass": found.system_mass,
    }
    overall = {name: float(values.mean()) for name, values in parts.items()}
    return overall | {f"{name}_by_layer_and_head": values.tolist() for name, values in parts.items()}
