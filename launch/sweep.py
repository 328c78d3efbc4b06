"""`ral-evaluate sweep=visual_tokens` and `sweep=frames`: what models make of seeing more (RAL paper, Fig 3)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from launch.figures import Figures, Questions, asked, figures
from launch.subject import Subject
from ral_system.config.schema import FilesConfig, RunConfig, SweepAxis, VideoSearchConfig
from ral_system.errors import ConfigError, DataError

PIXELS_PER_TOKEN = 28 * 28
"""Of Qwen2-VL and Qwen2.5-VL."""
_LABELS: dict[SweepAxis, str] = {"visual_tokens": "visual tokens of a picture", "frames": "frames of a video"}


def sweep(config: RunConfig, folder: Path) -> None:
    """Evaluate every model at every value, on the questions that all of them can be asked at all values; a table,
    `sweep.json` and `sweep.svg` in the run folder.
    """
    from ral_system.observability.jsonl import write_atomically
    from ral_system.observability.sweep_chart import SweepPoint, sweep_chart

    axis = config.sweep.axis
    assert axis is not None
    values = sorted(config.sweep.values)
    models = config.sweep.models or {"model": str(config.start_model)}
    subjects = {name: Subject.of(config, model, folder) for name, model in models.items()}  # one engine for all values
    questions = in_common(
        {(name, value): asked(at(config, value), subject) for name, subject in subjects.items() for value in values}
    )
    found: dict[str, dict[int, Figures]] = {}
    for name, subject in subjects.items():
        found[name] = {value: figures(at(config, value), subject, questions[name, value]) for value in values}
        subject.release()
    _print(found)
    lines = {
        name: [
            SweepPoint(value, f.values[f.headline], *f.intervals.get(f.headline, (f.values[f.headline],) * 2))
            for value, f in of_model.items()
        ]
        for name, of_model in found.items()
    }
    first = next(iter(next(iter(found.values())).values()))
    chart = sweep_chart(f"{config.name}: {first.title}", _LABELS[axis], first.headline.removeprefix("eval/"), lines)
    record: dict[str, Any] = {
        "axis": axis,
        "models": {n: {value: f.record for value, f in of_model.items()} for n, of_model in found.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "sweep.json", json.dumps(record, indent=2))
    write_atomically(folder / "sweep.svg", chart)
    print(f"{folder}/sweep.svg")


def in_common(questions: dict[tuple[str, int], Questions]) -> dict[tuple[str, int], Questions]:
    """Of each only the questions that all have. Raises DataError where there are none."""
    ids = [{prompt.id for prompt in of_point.prompts} for of_point in questions.values()]
    common, every = set.intersection(*ids), set.union(*ids)
    if not common:
        raise DataError("no question can be asked at every one of sweep.values; lower the highest, or raise the lowest")
    if common != every:
        print(
            f"{len(every - common)} questions cannot be asked at some value; all points leave them out", file=sys.stderr
        )
    return {point: of_point.only(common) for point, of_point in questions.items()}


def at(config: RunConfig, value: int) -> RunConfig:
    """The configuration at one value of the axis. Raises ConfigError for one below what `data` sets as least."""
    data: Any = config.data
    changed: Any
    if isinstance(data, VideoSearchConfig):
        changed = data.model_copy(update={"max_frames": (value,)})
    elif not isinstance(data, FilesConfig):
        changed = data.model_copy(update={"grid": (round(value**0.5),)})
    elif config.sweep.axis == "frames":
        video = {"max_frames": value, "min_frames": min(data.video.min_frames, value)}
        changed = data.model_copy(update={"video": data.video.model_copy(update=video)})
    else:
        most, least = value * PIXELS_PER_TOKEN, data.image.min_pixels
        if least is not None and least > most:
            raise ConfigError(f"sweep.values={value} is {most} pixels, below data.image.min_pixels={least}; lower that")
        changed = data.model_copy(update={"image": data.image.model_copy(update={"max_pixels": most})})
    return config.model_copy(update={"data": changed})


def _print(found: dict[str, dict[int, Figures]]) -> None:
    from rich.console import Console
    from rich.table import Table

    values = sorted({value for of_model in found.values() for value in of_model})
    table = Table("", *map(str, values))
    reference = next(iter(found))
    for name, of_model in found.items():
        cells = []
        for value in values:
            f = of_model[value]
            mean, ends = f.values[f.headline], f.intervals.get(f.headline)
            gain = mean - found[reference][value].values[f.headline]
            beside = "" if name == reference else f" ({gain:+.3f})"
            cells.append(f"{mean:.3f}{beside}" + (f"\n{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""))
        table.add_row(name, *cells)
    Console().print(table)
