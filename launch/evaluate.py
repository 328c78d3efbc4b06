"""`ral-evaluate`: accuracy of a model folder on held-out questions or a benchmark, and where its questions look.

ral-evaluate experiment=quickstart start_model=runs/quickstart/model evaluation.questions=500
ral-evaluate experiment=video_r1_qwen2_5_vl_7b_8gpu start_model=MODEL name=vstar \\
    evaluation.benchmark.name=vstar evaluation.benchmark.folder=/data/vstar
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from ral_system.config.commands import EvaluateConfig
from ral_system.config.evaluation import InterventionConfig
from ral_system.errors import ConfigError
from ral_system.evaluation.questions import Figures, asked, figures, write_quarantine
from ral_system.evaluation.subject import Subject, configured_intervention
from ral_system.launch.cli import run_with_config
from ral_system.launch.refused import leaving_nothing
from ral_system.models.folders import check_named
from ral_system.registry import BENCHMARKS
from ral_system.runs.folder import RunFolder

if TYPE_CHECKING:
    from ral_system.evaluation.attention_record import Looking
    from ral_system.tasks.open import QuestionSettings

VISUAL = ("visual_attention_score", "visual_mass", "system_mass")
_OF_LAYERS = ("visual_mass", "sink_mass", "visual_entropy_share", "evidence_mass", "pointing", "decay")
"""Figures that are printed of every layer; evaluation.json has all."""

ABOUT = f"""
ral-evaluate: measure the accuracy of start_model on held-out questions or a benchmark, and where it looks.
  ral-evaluate experiment=quickstart start_model=runs/quickstart/model evaluation.questions=500
  ral-evaluate experiment=video_r1_qwen2_5_vl_7b_8gpu start_model=MODEL evaluation.benchmark.{{name=vstar,folder=DIR}}
  ral-evaluate … sweep=visual_tokens 'sweep.values=[512,1024]'      the benchmark at two picture sizes
  ral-evaluate … intervention.image=0.15 intervention.system=0.4    beside the same model with steered attention
{fill(f"evaluation.benchmark.name is one of {', '.join(BENCHMARKS.names)}.", 110, subsequent_indent="  ")}

It writes evaluation.json, scores.jsonl and answers.html into runs_dir/name, or sweep.json and sweep.svg.
The same command again continues an evaluation that was interrupted.
"""


def main() -> None:
    """Evaluate `start_model` on held-out questions."""
    run_with_config(evaluate_model, EvaluateConfig, about=ABOUT)


def evaluate_model(config: EvaluateConfig) -> float | None:
    """Print a table of figures with their 95 % intervals; write `evaluation.json`, the answers and their scores into
    the run folder. Return the headline figure, None for a sweep.

    The held-out questions of `data`, with a column for the steered model if there is an intervention and the map
    `visual_score.svg`; or those of a benchmark; or a sweep of either.
    """
    if config.start_model is None and not config.sweep.models:
        raise ConfigError("start_model=null: no model to evaluate; set it, for example to runs/quickstart/model")
    named = {f"sweep.models.{name}": path for name, path in config.sweep.models.items()}
    for field, name in (named or {"start_model": str(config.start_model)}).items():
        check_named(field, name)
    from ral_system.observability.quiet import silence_third_party

    silence_third_party()
    folder = (Path(config.runs_dir) / config.name).resolve()
    with leaving_nothing(folder):
        run = RunFolder(folder)
        run.take()
        return _evaluate(config, folder)


def _evaluate(config: EvaluateConfig, folder: Path) -> float | None:
    if config.sweep.axis is not None:
        from ral_system.evaluation.sweep import sweep

        sweep(config, folder)
        return None
    from ral_system.evaluation.attention_record import looks_of_answers
    from ral_system.evaluation.other_pictures import with_parts, without_own_pictures
    from ral_system.evaluation.record_files import write_record
    from ral_system.tasks.open import QuestionSettings

    settings, subject = QuestionSettings.of(config), Subject.of(config, str(config.start_model), folder)
    if config.evaluation.benchmark.name is not None:
        questions = asked(config.evaluation, settings, subject)
        write_quarantine(folder, {"": questions.bad})
        found = figures(config, subject, questions)
        blind, parts = without_own_pictures(config, subject, questions), {}
        if config.evaluation.attended is not None:
            looks = looks_of_answers(config.evaluation, config.learner, subject, questions.prompts, found)
            parts = with_parts(config, subject, questions, found, looks)
        print_figures(f"{subject.model} on {found.title}", found, blind)
        _print_parts(config, found, parts)
        write_record(folder, {"model": str(subject.model), **found.record, **blind, **parts})
        _keep_answers(subject, found)
    else:
        found = _evaluate_held_out(config, settings, subject)
    return found.values.get(found.headline)


def _evaluate_held_out(config: EvaluateConfig, settings: QuestionSettings, subject: Subject) -> Figures:
    from ral_system.evaluation.attention_record import attention_of_questions, looks_of_answers, summarise
    from ral_system.evaluation.other_pictures import with_parts, without_own_pictures
    from ral_system.evaluation.record_files import write_record
    from ral_system.tasks.open import open_questions

    steer, folder, evaluation = config.intervention, subject.folder, config.evaluation
    if steer.active:
        _check_intervention(steer, subject.model)
    shown = open_questions(settings, subject.model, RunFolder(folder)).held_out(evaluation.attention_questions)
    attention = attention_of_questions(config.learner, subject, shown) if shown else {}  # before the engine starts
    if shown and not attention:
        print("no visual attention score: it needs a system turn and pictures in the questions")
    questions = asked(evaluation, settings, subject)
    found = figures(config, subject, questions)
    columns = without_own_pictures(config, subject, questions)
    first = questions.prompts[: evaluation.attention_questions]
    looked = first if evaluation.attended is None else questions.prompts
    looks = looks_of_answers(evaluation, config.learner, subject, looked, found)
    parts = with_parts(config, subject, questions, found, looks)
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
        steered = dict(figures(config, subject, questions, steer, subject.steered).values)
        columns |= {f"image +{steer.image:g}, system -{steer.system:g}": steered}
        record |= {"intervention": steer.model_dump(mode="json"), "steered": steered}
    _keep_answers(subject, found)
    of_questions = {f"of questions: {name}": attention[name] for name in VISUAL if name in attention}
    print_figures(f"{subject.model}: {found.title}", found, columns)
    _print_parts(config, found, parts)
    _print_looks({**of_questions, **looking.values}, looking)
    if steer.active:
        print(f"steered {steer.space}; both columns by transformers, because vLLM's attention cannot be steered")
    if attention:
        print(f"{folder}/visual_score.svg: the score by layer and head")
    write_record(folder, record)
    return found


def _keep_answers(subject: Subject, found: Figures) -> None:
    """Write the answers and their scores, and say where."""
    from ral_system.evaluation.record_files import write_answers, write_scores

    write_scores(subject.folder, found)
    print(f"{write_answers(subject, found)}: every question with its answers")


def print_figures(title: str, found: Figures, columns: Mapping[str, Mapping[str, float]] | None = None) -> None:
    """Print a table of every figure, its interval, and its values in other columns."""
    from rich.console import Console
    from rich.table import Column, Table

    more = columns or {}
    table = Table(Column(no_wrap=True), "value", "95 %", *more, title=title)
    for name, value in found.values.items():
        interval = _interval(found.intervals.get(name))
        others = (f"{column[name]:.3f}" if name in column else "" for column in more.values())
        table.add_row(name.removeprefix("eval/"), f"{value:.3f}", interval, *others)
    Console().print(table)


def _print_parts(config: EvaluateConfig, found: Figures, parts: Mapping[str, Mapping[str, float]]) -> None:
    """Print the figures with parts of the pictures beside those with all of them, if they were asked for."""
    if parts:
        title = f"with {config.evaluation.attended:g} of the visual tokens, or the others"
        print_figures(title, replace(found, intervals={}), parts)


def _print_looks(measured: Mapping[str, float], looking: Looking) -> None:
    """Print a table of where the model looks, if anything was measured, and one of its layers."""
    from rich.console import Console
    from rich.table import Table

    if measured:
        table = Table("", "value", "95 %", title="where it looks")
        for name, value in measured.items():
            table.add_row(name.removeprefix("looks/"), f"{value:.3f}", _interval(looking.intervals.get(name)))
        Console().print(table)
    if looking.by_layer:
        shown = [name for name in _OF_LAYERS if name in looking.by_layer]
        table = Table("layer", *shown, title="where it looks, layer by layer")
        of_layers = zip(*(looking.by_layer[name] for name in shown), strict=True)
        for layer, values in zip(looking.layers, of_layers, strict=True):
            table.add_row(str(layer), *(f"{value:.3f}" for value in values))
        Console().print(table)


def _interval(ends: tuple[float, float] | None) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""


def _check_intervention(steer: InterventionConfig, model: Path) -> None:
    """Raise ConfigError, before anything is measured, for layers or heads that cannot be steered."""
    from ral_system.models.loading import load_family

    family = load_family(model)
    text = family.config.get_text_config()
    try:
        configured_intervention(steer).check_model(
            text.num_hidden_layers, text.num_attention_heads, family.linear_layers
        )
    except ValueError as error:
        raise ConfigError(f"intervention.{error}") from error


if __name__ == "__main__":
    main()
