"""What `ral-evaluate` does: ask, measure where the answers look, print tables and write the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ral_system.config.commands import EvaluateConfig
from ral_system.config.evaluation import InterventionConfig
from ral_system.errors import ConfigError
from ral_system.evaluation.attention_record import attention_of_questions, looks_of_answers, summarise
from ral_system.evaluation.other_pictures import Columns, with_parts, without_own_pictures
from ral_system.evaluation.questions import Figures, Judging, asked, figures, write_quarantine
from ral_system.evaluation.record_files import write_answers, write_record, write_scores
from ral_system.evaluation.subject import Subject, configured_intervention
from ral_system.evaluation.sweep import sweep
from ral_system.evaluation.tables import print_figures, print_looks, print_parts
from ral_system.models.loading import load_family
from ral_system.runs.folder import RunFolder
from ral_system.tasks.open import QuestionSettings, open_questions

_VISUAL = ("visual_attention_score", "visual_mass", "system_mass")


def evaluate(config: EvaluateConfig, folder: Path) -> float | None:
    """Measure what the configuration asks for, print it and write it into the folder.

    Returns the headline figure; None for a sweep.
    """
    if config.sweep.axis is not None:
        sweep(config, folder)
        return None
    settings, subject = QuestionSettings.of(config), Subject.of(config, str(config.start_model), folder)
    of_one = _benchmark if config.evaluation.benchmark.name is not None else _held_out
    found = of_one(config, settings, subject)
    return found.values.get(found.headline)


def _benchmark(config: EvaluateConfig, settings: QuestionSettings, subject: Subject) -> Figures:
    evaluation, judging = config.evaluation, Judging.of(config)
    questions = asked(evaluation, settings, subject)
    write_quarantine(subject.folder, {"": questions.bad})
    found = figures(judging, subject, questions)
    blind = without_own_pictures(judging, subject, questions) if evaluation.blind else {}
    parts: Columns = {}
    if evaluation.attended is not None:
        looks = looks_of_answers(evaluation, config.learner, subject, questions.prompts, found)
        parts = with_parts(judging, subject, questions, found, looks, evaluation.attended)
    print_figures(f"{subject.model} on {found.title}", found, blind)
    if evaluation.attended is not None and parts:
        print_parts(found, evaluation.attended, parts)
    write_record(subject.folder, {"model": str(subject.model), **found.record, **blind, **parts})
    _keep_answers(subject, found)
    return found


def _held_out(config: EvaluateConfig, settings: QuestionSettings, subject: Subject) -> Figures:
    steer, folder, evaluation, judging = config.intervention, subject.folder, config.evaluation, Judging.of(config)
    if steer.active:
        _check_intervention(steer, subject.model)
    shown = open_questions(settings, subject.model, RunFolder(folder)).held_out(evaluation.attention_questions)
    attention = attention_of_questions(config.learner, subject, shown) if shown else {}  # before the engine starts
    if shown and not attention:
        print("no visual attention score: it needs a system turn and pictures in the questions")
    questions = asked(evaluation, settings, subject)
    found = figures(judging, subject, questions)
    columns = without_own_pictures(judging, subject, questions) if evaluation.blind else {}
    first = questions.prompts[: evaluation.attention_questions]
    looked = first if evaluation.attended is None else questions.prompts
    looks = looks_of_answers(evaluation, config.learner, subject, looked, found)
    parts: Columns = {}
    if evaluation.attended is not None:
        parts = with_parts(judging, subject, questions, found, looks, evaluation.attended)
    looking = summarise(subject, looks, first, found)
    record: dict[str, Any] = {
        "model": str(subject.model),
        **found.record,
        **attention,
        **looking.values,
        **columns,
        **parts,
        "intervals": {**found.intervals, **looking.intervals},
    }
    if looking.by_layer:
        record |= {"looks_by_layer": looking.by_layer, "layers": looking.layers}
    if steer.active:
        steered = dict(figures(judging, subject, questions, steer, subject.steered).values)
        columns |= {f"image +{steer.image:g}, system -{steer.system:g}": steered}
        record |= {"intervention": steer.model_dump(mode="json"), "steered": steered}
    _keep_answers(subject, found)
    of_questions = {f"of questions: {name}": attention[name] for name in _VISUAL if name in attention}
    print_figures(f"{subject.model}: {found.title}", found, columns)
    if evaluation.attended is not None and parts:
        print_parts(found, evaluation.attended, parts)
    print_looks({**of_questions, **looking.values}, looking)
    if steer.active:
        print(f"steered {steer.space}; both columns by transformers, because vLLM's attention cannot be steered")
    if attention:
        print(f"{folder}/visual_score.svg: the score by layer and head")
    write_record(folder, record)
    return found


def _keep_answers(subject: Subject, found: Figures) -> None:
    """Write the answers and their scores, and say where."""
    write_scores(subject.folder, found)
    print(f"{write_answers(subject, found)}: every question with its answers")


def _check_intervention(steer: InterventionConfig, model: Path) -> None:
    """Raise ConfigError, before anything is measured, for layers or heads that cannot be steered."""
    family = load_family(model)
    text = family.config.get_text_config()
    try:
        configured_intervention(steer).check_model(
            text.num_hidden_layers, text.num_attention_heads, family.linear_layers
        )
    except ValueError as error:
        raise ConfigError(f"intervention.{error}") from error
