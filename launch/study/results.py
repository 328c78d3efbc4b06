"""Results of a study: a table and differences for people, a line for each run for programs, and charts."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ral_system.errors import ConfigError
from ral_system.launch.study.differences import differences
from ral_system.launch.study.figure_differences import figure_differences
from ral_system.launch.study.files import Run, Study, evaluation_of
from ral_system.launch.study.table import table
from ral_system.observability.jsonl import dump, read_objects, write_atomically
from ral_system.report.curves import CurveRow, curves
from ral_system.report.dots import Panel, dots

EVALUATED = {
    "eval/accuracy": "accuracy",
    "visual_attention_score": "visual attention score",
    "visual_mass": "visual mass",
    "system_mass": "system mass",
}
"""Figures of an evaluation.json that are shown."""

Line = dict[str, Any]
"""What is known of one arm with one seed: a line of study.jsonl."""


def read_lines(files: Iterable[Path], study: Study) -> list[Line]:
    """Read the lines of other seeds' study.jsonl. Raises ConfigError for one that does not fit the study."""
    seen: dict[tuple[Any, Any], str] = {}
    seen |= {(run.arm, run.seed): "run here as well" for run in study.runs if run.arm is not None}
    found: list[Line] = []
    for file in files:
        if not file.is_file():
            raise ConfigError(f"--with {file}: no such file; give a study.jsonl of the same study")
        lines = read_objects(file)
        if not lines:
            raise ConfigError(f"--with {file}: holds no line of a study; give a study.jsonl")
        for line in lines:
            of = (line.get("arm"), line.get("seed"))
            if of[0] not in study.arms or of[1] is None:
                raise ConfigError(f"--with {file}: arm {of[0]!r} is not one of {', '.join(study.arms)}")
            if of in seen:
                raise ConfigError(f"--with {file}: {of[0]} with seed {of[1]} is {seen[of]}; keep one of the two")
            for part, names in (("metrics", study.metrics), ("curves", study.curves)):
                if missing := [name for name in names if name not in line.get(part, {})]:
                    raise ConfigError(f"--with {file}: it has no {part} {missing[0]}; it is of another study")
            seen[of] = f"also in {file}"
            found.append(line)
    return found


def write_results(study: Study, folder: Path, others: Sequence[Line] = ()) -> str:
    """Write all arms and seeds, `others` included: study.md, study.jsonl, study.svg, curves.svg, differences.svg."""
    by_name = {run.name: run for run in study.runs}
    lines = [*others, *(_line(study, folder, run, by_name) for run in study.runs if run.arm is not None)]
    _check_questions(lines)
    by_arm = {arm: [line for line in lines if line["arm"] == arm] for arm in study.arms}
    text = f"# {study.title}\n\n{_table(study, by_arm)}"
    if study.compare is not None:
        found = differences(study.compare, by_arm)
        text += f"\n{found.table}"
        if other := figure_differences(study.compare, by_arm, study.figures, study.curves):
            text += f"\n{other}"
        folder.joinpath("differences.svg").write_text(found.chart, encoding="utf-8")
    folder.joinpath("study.md").write_text(text, encoding="utf-8")
    write_atomically(folder / "study.jsonl", "".join(dump(line) + "\n" for line in lines))
    shown = list(EVALUATED)[:2] if study.evaluated else ["eval/accuracy"]
    panels = [
        Panel(EVALUATED[name], {arm: [r[name] for r in of_arm if name in r] for arm, of_arm in by_arm.items()})
        for name in shown
    ]
    folder.joinpath("study.svg").write_text(dots(study.title, panels), encoding="utf-8")
    if study.curves:
        rows = [
            CurveRow(name, {arm: [line["curves"][name] for line in of_arm] for arm, of_arm in by_arm.items()})
            for name in study.curves
        ]
        folder.joinpath("curves.svg").write_text(curves(study.title, rows), encoding="utf-8")
    return text


def _table(study: Study, by_arm: Mapping[str, Sequence[Line]]) -> str:
    seeds = list(dict.fromkeys(line["seed"] for of_arm in by_arm.values() for line in of_arm))
    means = [*EVALUATED, *study.figures][1:] if study.evaluated else ["before"]
    header = ["", *(f"seed {seed}" for seed in seeds), "mean", *(EVALUATED.get(name, name) for name in means)]
    header += ["seconds", *study.metrics]
    rows = []
    for arm, of_arm in by_arm.items():
        by_seed = {line["seed"]: line for line in of_arm}
        accuracy = [line["eval/accuracy"] for line in of_arm if "eval/accuracy" in line]
        cells = [arm, *(_accuracy(by_seed[seed]) if seed in by_seed else "-" for seed in seeds)]
        cells += [f"**{statistics.mean(accuracy):.3f}**" if accuracy else "-"]
        cells += [_mean([line.get(name) for line in of_arm]) for name in [*means, "seconds"]]
        cells += [_first_to_last([line["metrics"][metric] for line in of_arm]) for metric in study.metrics]
        rows.append(cells)
    note = "Held-out accuracy, greedy, by seed; the rest: means over seeds, of metrics at the first and last step."
    return f"{table(header, rows)}\n\n{note}\n"


def _check_questions(lines: Sequence[Line]) -> None:
    """Raise ConfigError for runs that were asked different questions, which cannot be paired."""
    asked = {line["questions"]: line for line in lines if "questions" in line}
    if len(asked) > 1:
        one, other = list(asked.values())[:2]
        raise ConfigError(f"{one['run']} and {other['run']} were asked different questions; give runs of the same ones")


def _line(study: Study, folder: Path, run: Run, by_name: Mapping[str, Run]) -> Line:
    """Read what a run and its evaluation wrote; for one that did not end, how far it came."""
    made, evaluation = folder / run.name, by_name.get(evaluation_of(run.name))
    if not study.evaluated:
        found = _trained(made)
    elif evaluation is not None and evaluation.complete():
        found = _evaluated(folder, run.name, study.figures)
    else:
        found = {}  # an evaluation.json of an earlier model says nothing about this one
    if not found:
        found = {"ended": _last_step(made)}
    curves_ = {name: _curve(made, name) for name in study.curves}
    about = {"arm": run.arm, "seed": run.seed, "run": run.name, "seconds": _seconds(made)}
    return {**about, **found, "metrics": _metrics(made, study.metrics), "curves": curves_}


def _evaluated(folder: Path, name: str, figures: Sequence[str]) -> Line:
    """Return what `ral-evaluate` measured on a run's model, without undefined scores; {} for a failed run."""
    made = folder / evaluation_of(name)
    file = made / "evaluation.json"
    if not file.is_file():
        return {}
    written = json.loads(file.read_text(encoding="utf-8"))
    figures_found = {name: _at(written, name) for name in (*EVALUATED, *figures)}
    scores: dict[str, list[float]] = {}
    ids = hashlib.sha256()
    for question in read_objects(made / "scores.jsonl"):
        ids.update(f"{question['id']} {question['references']}\n".encode())
        score = round(statistics.mean(question["scores"]), 4)
        scores.setdefault(question["category"], []).append(int(score) if score == int(score) else score)
    return {**{name: value for name, value in figures_found.items() if value is not None}, "scores": scores} | {
        "questions": ids.hexdigest()[:16]
    }


def _at(written: Any, name: str) -> Any:
    """A figure by its name, or by the way to it: `black.eval/accuracy`, `looks_by_layer.evidence_mass.0`."""
    if name in written:
        return written[name]
    for part in name.split("."):
        if isinstance(written, list) and part.isdigit() and int(part) < len(written):
            written = written[int(part)]
        elif isinstance(written, dict) and part in written:
            written = written[part]
        else:
            return None
    return written


def _trained(folder: Path) -> Line:
    """Return what the RL stage itself measured, before and after; {} for a failed run."""
    summary = _summary(folder)
    if summary.get("held_out_accuracy_after_rl") is None:
        return {}
    before = next(line["eval/accuracy"] for line in _rl_lines(folder) if "eval/accuracy" in line)
    return {"eval/accuracy": summary["held_out_accuracy_after_rl"], "before": before}


def _seconds(folder: Path) -> float | None:
    """Return the time of a run's stages, without the start of its process."""
    stages = _summary(folder).get("wall_s", {}).values()
    known = [stage["total"] for stage in stages if stage.get("total") is not None]
    return round(sum(known), 1) if known else None


def _summary(folder: Path) -> Mapping[str, Any]:
    file = folder / "summary.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _metrics(folder: Path, names: Sequence[str]) -> dict[str, list[float] | None]:
    lines = _rl_lines(folder) if names else []
    values = {name: [line[name] for line in lines if line.get(name) is not None] for name in names}
    return {name: [found[0], found[-1]] if found else None for name, found in values.items()}


def _curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """Return (step, value) pairs as far as the run went; figures that were not finite are null and left out."""
    return [(line["step"], line[name]) for line in _rl_lines(folder) if line.get(name) is not None]


def _last_step(folder: Path) -> str:
    lines = read_objects(folder / "metrics.jsonl")
    return f"after {lines[-1].get('stage')} step {lines[-1].get('step')}" if lines else "before its first step"


def _accuracy(result: Mapping[str, Any]) -> str:
    if "eval/accuracy" in result:
        return f"{result['eval/accuracy']:.3f}"
    return f"ended {result['ended']}"


def _rl_lines(folder: Path) -> list[Line]:
    return [line for line in read_objects(folder / "metrics.jsonl") if line.get("stage") == "rl"]


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.3g}" if known else "-"


def _first_to_last(pairs: Sequence[Sequence[float] | None]) -> str:
    known = [pair for pair in pairs if pair is not None]
    if not known:
        return "-"
    first, last = (statistics.mean(pair[i] for pair in known) for i in (0, 1))
    return f"{first:.3g} → {last:.3g}"
