"""Questions of an evaluation, and the figures computed from the answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ral_system.config.choices import ResponseFormat
from ral_system.config.commands import EvaluateConfig
from ral_system.config.data import FilesConfig
from ral_system.config.evaluation import BenchmarkConfig, MeasurementConfig
from ral_system.config.reward import SignalsConfig
from ral_system.errors import DataError
from ral_system.evaluation.subject import Subject
from ral_system.types import Completion, Prompt, Rollout, Sampling

if TYPE_CHECKING:
    from ral_system.benchmarks.item import BadItem, Item
    from ral_system.evaluation.answers import Generate
    from ral_system.evaluation.intervals import Resampled
    from ral_system.report.answers_page import Answered
    from ral_system.tasks.open import QuestionSettings


@dataclass(frozen=True)
class Questions:
    """Questions of an evaluation."""

    prompts: Sequence[Prompt]
    total: int
    """Number of questions, including those that cannot be asked."""
    available: int
    """Questions that exist; more than `total` with evaluation.benchmark.limit."""
    items: Mapping[str, Item] = field(default_factory=dict)
    """Items of a benchmark by prompt, without their media, which the prompts have."""
    bad: Sequence[BadItem] = ()
    """Items that cannot be asked."""

    def only(self, ids: Sequence[str]) -> Questions:
        """Keep the questions with these ids, in this order."""
        by_id = {prompt.id: prompt for prompt in self.prompts}
        return replace(self, prompts=[by_id[id] for id in ids])


@dataclass(frozen=True)
class Figures:
    """Figures of an evaluation."""

    title: str
    values: Mapping[str, float]
    headline: str
    """Name of the headline figure."""
    intervals: Mapping[str, tuple[float, float]]
    resampled: Resampled
    """Figures on the resamples of the questions, from which the intervals come."""
    record: Mapping[str, Any]
    """Content of evaluation.json."""
    answered: Sequence[Answered]
    """Content of answers.html."""
    answers: Mapping[str, Sequence[Completion]]
    """Answers by question."""
    left_out: str = ""
    """Number of questions that could not be asked, and the most frequent reason."""


@dataclass(frozen=True, slots=True)
class Judging:
    """How answers are drawn and judged."""

    samples: int
    """Answers to a question: 1 is greedy, more are drawn."""
    benchmark: str | None
    """Benchmark by whose rules answers are judged; None: by the rewards of training."""
    reward: SignalsConfig
    response_format: ResponseFormat

    @classmethod
    def of(cls, config: EvaluateConfig) -> Judging:
        """Take it from the configuration of `ral-evaluate`."""
        evaluation = config.evaluation
        return cls(evaluation.samples, evaluation.benchmark.name, config.reward, config.algorithm.response_format)


def scores_of(found: Figures) -> dict[str, float]:
    """Score of every answer, by completion id."""
    return {
        completion.id: score
        for of_question in found.answered
        for completion, score in zip(found.answers[of_question.question["id"]], of_question.scores, strict=True)
    }


def asked(evaluation: MeasurementConfig, settings: QuestionSettings, subject: Subject, label: str = "") -> Questions:
    """The held-out questions of `data`, or those of the configured benchmark, as the subject reads them. Progress is
    shown under `label`.

    Raises DataError where none can be asked, or too many cannot be.
    """
    if evaluation.benchmark.name is None:
        return _held_out(evaluation.questions, settings, subject)
    return _of_benchmark(evaluation.benchmark, settings, subject, label)


def figures(
    judging: Judging,
    subject: Subject,
    questions: Questions,
    steered: object = None,
    start: Callable[[], Generate] | None = None,
    label: str = "",
) -> Figures:
    """Measure the answers of the subject's engine, or of the one that `start` makes, `steered` as given. `label` is
    shown with the progress.
    """
    samples = judging.samples
    start = start or (lambda: subject.generate)
    answers = _answers(samples, subject, questions.prompts, start, label, steered)
    how = "greedy" if samples == 1 else f"mean of {samples} at temperature {subject.rollout.temperature:g}"
    if judging.benchmark is None:
        return _held_out_figures(judging, how, questions, answers)
    return _benchmark_figures(judging.benchmark, samples, how, questions, answers)


def _held_out(count: int, settings: QuestionSettings, subject: Subject) -> Questions:
    from ral_system.runs.folder import RunFolder
    from ral_system.tasks.open import open_questions

    prompts = open_questions(settings, subject.model, RunFolder(subject.folder)).held_out(count)
    return Questions(prompts, total=len(prompts), available=len(prompts))


def _held_out_figures(
    judging: Judging, how: str, questions: Questions, answers: Mapping[str, Sequence[Completion]]
) -> Figures:
    from ral_system.evaluation.greedy import Evaluation, judged
    from ral_system.evaluation.intervals import bootstrap, grouped, intervals, unit_of
    from ral_system.report.answers_page import Answered
    from ral_system.rewards.pool import RewardPool

    prompts, samples = questions.prompts, judging.samples
    with RewardPool(judging.reward, judging.response_format) as rewarder:
        for prompt in prompts:
            rewarder.submit(answers[prompt.id], prompt)
        rollouts = judged(rewarder, judging.reward, prompts, answers).rollouts

    def metrics(units: Sequence[Sequence[Rollout]]) -> dict[str, float]:
        return Evaluation(tuple(rollout for unit in units for rollout in unit)).metrics()

    resampled = bootstrap(grouped((unit_of(rollout.prompt), rollout) for rollout in rollouts), metrics)
    resampled = {name: values for name, values in resampled.items() if "accuracy" in name or "rate" in name}
    uncertain, values = intervals(resampled), metrics([rollouts])
    per_question = [rollouts[i : i + samples] for i in range(0, len(rollouts), samples)]
    answered = [
        Answered(
            _shown(of_prompt[0].prompt),
            tuple(r.completion.text for r in of_prompt),
            tuple(r.reward.parts.get("correctness", 0.0) for r in of_prompt),
            tuple(f"{r.reward.status}: {r.reward.detail}" if r.reward.detail else "" for r in of_prompt),
        )
        for of_prompt in per_question
    ]
    title = f"{len(prompts)} questions, {how}"
    record = {**values, "intervals": uncertain}
    return Figures(title, values, "eval/accuracy", uncertain, resampled, record, answered, answers)


def _of_benchmark(chosen: BenchmarkConfig, settings: QuestionSettings, subject: Subject, label: str) -> Questions:
    from ral_system.benchmarks.reading import read_items
    from ral_system.benchmarks.selection import select
    from ral_system.data.preparation import decoders_of
    from ral_system.evaluation.benchmark import ask, most_often
    from ral_system.models.loading import load_family
    from ral_system.observability.progress import StageProgress

    data, folder = settings.data, subject.folder
    assert chosen.name is not None and chosen.folder is not None and isinstance(data, FilesConfig)
    name, files, family = chosen.name, Path(chosen.folder), load_family(subject.model)
    selection = select(read_items(name, files), chosen.limit)
    total = len(selection.places)
    with (
        decoders_of(data, subject.media, family.frames_per_view) as decoders,
        StageProgress(f"{name} {label}".strip(), total) as progress,
    ):
        found, bad = ask(
            selection.of(read_items(name, files)),
            decoders,
            settings.renderer(family),
            family.pixel_budgets(data),
            settings.max_prompt_tokens,
            lambda done: progress.update(done, {}),
        )
    if not found or len(bad) > data.max_broken * total:
        write_quarantine(folder, {label: bad})
        raise DataError(
            f"{chosen.folder}: {len(bad)} of {total} questions cannot be asked (data.max_broken={data.max_broken:g}), "
            f"{most_often(bad)}. See {folder / 'quarantine.jsonl'}; correct them, or raise data.max_broken"
        )
    # Nothing is scored by its media or its text, and a benchmark's pictures may be gigabytes.
    items = {a.prompt.id: replace(a.item, media=(), text="") for a in found}
    return Questions([a.prompt for a in found], total, selection.available, items, bad)


def _benchmark_figures(
    name: str, samples: int, how: str, questions: Questions, answers: Mapping[str, Sequence[Completion]]
) -> Figures:
    from ral_system.evaluation.benchmark import Asked, most_often, results
    from ral_system.evaluation.intervals import intervals
    from ral_system.registry import BENCHMARKS
    from ral_system.report.answers_page import Answered

    prompts = questions.prompts
    found = results(BENCHMARKS.get(name), [Asked(questions.items[p.id], p) for p in prompts], answers)
    values = {f"{name}/{part}": value for part, value in found.figures.items()}
    resampled = {f"{name}/{part}": of_part for part, of_part in found.resampled.items()}
    uncertain = intervals(resampled)
    left_out = questions.total - len(prompts)
    record = {
        "benchmark": name,
        "questions": len(prompts),
        "left_out": left_out,
        "available": questions.available,
        "samples": samples,
        **values,
        "intervals": uncertain,
    }
    answered = [
        Answered(_shown(p), tuple(c.text for c in answers[p.id]), found.scores[questions.items[p.id].id])
        for p in prompts
    ]
    limited = (
        f", limited to {questions.total} of {questions.available}" if questions.total < questions.available else ""
    )
    title = f"{name}{limited}: {len(prompts)} of {questions.total} questions, {how}"
    bad = f"{len(questions.bad)} left out, {most_often(questions.bad)}" if questions.bad else ""
    return Figures(title, values, f"{name}/score", uncertain, resampled, record, answered, answers, bad)


def _answers(
    samples: int,
    subject: Subject,
    prompts: Sequence[Prompt],
    start: Callable[[], Generate],
    label: str,
    *engine: object,
) -> dict[str, list[Completion]]:
    """Collect `samples` answers to every prompt; those of an interrupted evaluation are reused."""
    from ral_system.evaluation.answers import answers_file, collect_answers
    from ral_system.observability.progress import StageProgress

    engine_settings = subject.rollout
    temperature, seed = (0.0, 0) if samples == 1 else (engine_settings.temperature, subject.seed)
    sampling = Sampling(samples, temperature, engine_settings.max_new_tokens, seed=seed)
    rollout = engine_settings.model_dump(include={"dtype", "stop_at_answer", "max_model_len"})
    path = answers_file(subject.folder, subject.model, prompts, sampling, subject.engine, rollout, *engine)
    with StageProgress(f"answers {label}".strip(), len(prompts)) as progress:
        return collect_answers(start, prompts, sampling, path, lambda done: progress.update(done, {}))


def _shown(prompt: Prompt) -> dict[str, Any]:
    media = [asdict(medium) for medium in prompt.media]
    found = {"id": prompt.id, "kind": prompt.kind, "question": prompt.question, "answer": prompt.answer}
    return found | {"media": media}


def write_quarantine(folder: Path, bad: Mapping[str, Sequence[BadItem]]) -> None:
    """List items that cannot be asked by point of a sweep; an empty label without a sweep."""
    from ral_system.observability.jsonl import dump, write_atomically

    path, lines = folder / "quarantine.jsonl", []
    for label, items in bad.items():
        lines += [({"at": label} if label else {}) | {"id": item.id, "reason": item.reason} for item in items]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(dump(line) + "\n" for line in lines))
    if count := len({line["id"] for line in lines}):
        print(f"{count} questions cannot be asked: {path}", file=sys.stderr)
