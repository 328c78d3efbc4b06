"""`ral-evaluate sweep=visual_tokens` and `sweep=frames`: accuracy over tokens or frames (RAL paper, Fig 3)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ral_system.config.commands import EvaluateConfig
from ral_system.config.data import AskedVideosConfig, FilesConfig
from ral_system.config.evaluation import SweepAxis
from ral_system.errors import ConfigError, DataError
from ral_system.evaluation.questions import Figures, Judging, Questions, asked, figures, write_quarantine
from ral_system.evaluation.subject import Subject
from ral_system.types import Prompt

if TYPE_CHECKING:
    from ral_system.families.family import Family
    from ral_system.tasks.open import QuestionSettings

Point = tuple[str, int]
"""A model's name and a value of the axis."""


@dataclass(frozen=True, slots=True)
class Gain:
    """Gain of a model over the first one."""

    value: float
    over: str
    """Name of the first model."""
    interval: tuple[float, float] | None
    """95 % interval, paired on the same questions; None if the figures have no interval."""


_LABELS: dict[SweepAxis, str] = {
    "visual_tokens": "visual tokens of a picture, mean seen",
    "frames": "frames of a video, mean seen",
}


def sweep(config: EvaluateConfig, folder: Path) -> None:
    """Evaluate every model at every value, on the questions that all of them can be asked at all values; a table,
    `sweep.json` and `sweep.svg` in the run folder.
    """
    from ral_system.models.loading import load_family
    from ral_system.observability.jsonl import write_atomically
    from ral_system.tasks.open import QuestionSettings

    axis, evaluation, settings = config.sweep.axis, config.evaluation, QuestionSettings.of(config)
    judging = Judging.of(config)
    assert axis is not None
    values = sorted(config.sweep.values)
    models = config.sweep.models or {"model": str(config.start_model)}
    subjects = {name: Subject.of(config, model, folder) for name, model in models.items()}  # one engine for all values
    families = {name: load_family(subject.model) for name, subject in subjects.items()}
    points = {(name, value): at(settings, axis, value, families[name]) for name in subjects for value in values}
    questions = {
        (name, value): asked(evaluation, point, subjects[name], f"{name} at {value}")
        for (name, value), point in points.items()
    }
    write_quarantine(folder, {f"{name} at {value}": q.bad for (name, value), q in questions.items()})
    questions = in_common(questions)
    seen = {point: mean_seen(axis, families[point[0]], q.prompts) for point, q in questions.items()}
    found: dict[Point, Figures] = {}
    for name, subject in subjects.items():
        for value in values:
            point = (name, value)
            found[point] = f = figures(judging, subject, questions[point], label=f"{name} at {value}")
            if f.headline not in f.values:
                raise DataError(
                    f"{f.headline}: some of its parts were not asked; raise evaluation.benchmark.limit, or correct "
                    f"what {folder}/quarantine.jsonl names"
                )
        subject.release()
    gains = gains_over_first(found)
    record: dict[str, Any] = {
        "axis": axis,
        "models": {
            name: {
                value: {f"{axis}_seen": seen[name, value], **found[name, value].record}
                | ({"gain": asdict(gains[name, value])} if (name, value) in gains else {})
                for value in values
            }
            for name in subjects
        },
    }
    _print(found, seen, gains)
    write_atomically(folder / "sweep.json", json.dumps(record, indent=2))
    write_atomically(folder / "sweep.svg", _chart(config.name, axis, found, seen))
    print(f"{folder}/sweep.svg")


def in_common(questions: dict[Point, Questions]) -> dict[Point, Questions]:
    """Keep only the questions that all points share, in one order. Raises DataError if there are none."""
    ids = [[prompt.id for prompt in of_point.prompts] for of_point in questions.values()]
    in_all, every = set(ids[0]).intersection(*ids), set().union(*ids)
    common = [id for id in ids[0] if id in in_all]
    if not common:
        raise DataError("no question can be asked at every one of sweep.values; lower the highest, or raise the lowest")
    if in_all != every:
        print(
            f"{len(every - in_all)} questions cannot be asked at some value; all points leave them out", file=sys.stderr
        )
    return {point: of_point.only(common) for point, of_point in questions.items()}


def gains_over_first(found: Mapping[Point, Figures]) -> dict[Point, Gain]:
    """Return the gain in the headline figure over the first model, for every other model and value.

    All points were asked the same questions in one order.
    """
    from ral_system.evaluation.intervals import paired_interval

    first, gains = next(iter(found))[0], {}
    for (name, value), f in found.items():
        if name != first:
            base, headline = found[first, value], f.headline
            interval = paired_interval(f.resampled, base.resampled, headline)
            gains[name, value] = Gain(f.values[headline] - base.values[headline], first, interval)
    return gains


def mean_seen(axis: SweepAxis, family: Family, prompts: Sequence[Prompt]) -> float:
    """Compute the mean input: visual tokens per picture, or frames per video; a value of the axis is its upper limit.

    Raises ConfigError if the questions have no such medium.
    """
    kind = "video" if axis == "frames" else "image"
    media = [medium for prompt in prompts for medium in prompt.media if medium.kind == kind]
    if not media:
        raise ConfigError(f"sweep.axis={axis}: the questions have no {kind}s; choose the other axis")
    return sum(medium.frames if axis == "frames" else family.tokens(medium) for medium in media) / len(media)


def at(settings: QuestionSettings, axis: SweepAxis, value: int, family: Family) -> QuestionSettings:
    """The settings at one value of the axis. Raises ConfigError for one outside what `data` or the model allow."""
    data: Any = settings.data
    changed: Any
    if isinstance(data, AskedVideosConfig):
        changed = data.model_copy(update={"max_frames": (value,)})
    elif not isinstance(data, FilesConfig):
        changed = data.model_copy(update={"grid": (round(value**0.5),)})
    elif axis == "frames":
        video = {"max_frames": value, "min_frames": min(data.video.min_frames, value)}
        changed = data.model_copy(update={"video": data.video.model_copy(update=video)})
    else:
        smallest, largest = family.picture_bounds
        most, least = value * family.pixels_per_token, data.image.min_pixels or smallest
        if not least <= most <= largest:
            raise ConfigError(
                f"sweep.values={value} is {most} pixels; a picture has {least} to {largest}, by "
                "data.image.min_pixels and the model's processor"
            )
        changed = data.model_copy(update={"image": data.image.model_copy(update={"max_pixels": most})})
    return replace(settings, data=changed)


def _chart(name: str, axis: SweepAxis, found: Mapping[Point, Figures], seen: Mapping[Point, float]) -> str:
    from ral_system.report.sweep_chart import SweepPoint, sweep_chart

    lines: dict[str, list[SweepPoint]] = {}
    for (model, value), f in found.items():
        mean = f.values[f.headline]
        ends = f.intervals.get(f.headline, (mean, mean))
        lines.setdefault(model, []).append(SweepPoint(seen[model, value], mean, *ends))
    first = next(iter(found.values()))
    return sweep_chart(f"{name}: {first.title}", _LABELS[axis], first.headline.removeprefix("eval/"), lines)


def _print(found: Mapping[Point, Figures], seen: Mapping[Point, float], gains: Mapping[Point, Gain]) -> None:
    from rich.console import Console
    from rich.table import Table

    names, values = list(dict.fromkeys(name for name, _ in found)), sorted({value for _, value in found})
    table = Table("at most", "seen", *names, title=next(iter(found.values())).title)
    for value in values:
        cells = []
        for name in names:
            f, gain = found[name, value], gains.get((name, value))
            of_gain = f" {gain.value:+.3f}{_ends(gain.interval)}" if gain else ""
            cells.append(f"{f.values[f.headline]:.3f}{_ends(f.intervals.get(f.headline))}{of_gain}")
        table.add_row(str(value), f"{seen[names[0], value]:.4g}", *cells)
    Console().print(table)


def _ends(interval: tuple[float, float] | None) -> str:
    return f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
