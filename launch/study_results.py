"""Results of a study: a table for people, JSON for programs, and charts."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from ral_system.launch.study import Study, evaluation_of
from ral_system.observability.jsonl import read_objects
from ral_system.report.curves import CurveRow, curves
from ral_system.report.dots import Panel, dots

EVALUATED = {
    "eval/accuracy": "accuracy",
    "visual_attention_score": "visual attention score",
    "visual_mass": "visual mass",
    "system_mass": "system mass",
}
"""Figures of an evaluation.json that are shown."""


def write_results(study: Study, folder: Path) -> str:
    """Write held-out accuracy and other figures of all arms and seeds: study.md, study.json, study.svg, curves.svg."""
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in study.arms}
    for run in study.runs:
        if run.arm is not None:
            found = _evaluated(folder, run.name) if study.evaluated else _trained(folder / run.name)
            metrics = _metrics(folder / run.name, study.metrics)
            failed = {} if found else {"failed_after": _last_step(folder / run.name)}
            results[run.arm].append({"run": run.name, **found, **failed, "metrics": metrics})
    seeds = list(dict.fromkeys(run.seed for run in study.runs if run.arm is not None))
    means = list(EVALUATED)[1:] if study.evaluated else ["before"]
    named = [EVALUATED.get(name, name) for name in means]
    header = ["", *(f"seed {seed}" for seed in seeds), "mean", *named, *study.metrics]
    lines = [f"# {study.title}", "", _row(header), _row(["---"] * len(header))]
    for arm, of_arm in results.items():
        accuracy = [r["eval/accuracy"] for r in of_arm if "eval/accuracy" in r]
        cells = [arm, *map(_accuracy, of_arm), f"**{statistics.mean(accuracy):.3f}**" if accuracy else "-"]
        cells += [_mean([r.get(name) for r in of_arm]) for name in means]
        cells += [_first_to_last([r["metrics"][metric] for r in of_arm]) for metric in study.metrics]
        lines.append(_row(cells))
    lines += [
        "",
        "Held-out accuracy, greedy, by seed; the rest: means over seeds, of metrics at the first and last step.",
    ]
    table = "\n".join(lines) + "\n"
    folder.joinpath("study.md").write_text(table, encoding="utf-8")
    folder.joinpath("study.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    shown = list(EVALUATED)[:2] if study.evaluated else ["eval/accuracy"]
    panels = [
        Panel(EVALUATED[name], {arm: [r[name] for r in of_arm if name in r] for arm, of_arm in results.items()})
        for name in shown
    ]
    folder.joinpath("study.svg").write_text(dots(study.title, panels), encoding="utf-8")
    if study.curves:
        rows = [
            CurveRow(name, {arm: [_curve(folder / r["run"], name) for r in of_arm] for arm, of_arm in results.items()})
            for name in study.curves
        ]
        folder.joinpath("curves.svg").write_text(curves(study.title, rows), encoding="utf-8")
    return table


def _evaluated(folder: Path, name: str) -> dict[str, float]:
    """Return what `ral-evaluate` measured on a run's model, without undefined scores; {} for a failed run."""
    file = folder / evaluation_of(name) / "evaluation.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {name: found[name] for name in EVALUATED if name in found}


def _trained(folder: Path) -> dict[str, float]:
    """Return what the RL stage itself measured, before and after; {} for a failed run."""
    file = folder / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "held_out_accuracy_after_rl" not in summary:
        return {}
    before = next(line["eval/accuracy"] for line in _rl_lines(folder) if "eval/accuracy" in line)
    return {"eval/accuracy": summary["held_out_accuracy_after_rl"], "before": before}


def _metrics(folder: Path, names: tuple[str, ...]) -> dict[str, list[float] | None]:
    lines = _rl_lines(folder) if names else []
    values = {name: [line[name] for line in lines if line.get(name) is not None] for name in names}
    return {name: [found[0], found[-1]] if found else None for name, found in values.items()}


def _curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """Return (step, value) pairs as far as the run went; figures that were not finite are null and left out."""
    return [(line["step"], line[name]) for line in _rl_lines(folder) if line.get(name) is not None]


def _last_step(folder: Path) -> str:
    lines = read_objects(folder / "metrics.jsonl")
    return f"{lines[-1].get('stage')} step {lines[-1].get('step')}" if lines else "nothing"


def _accuracy(result: dict[str, Any]) -> str:
    if "eval/accuracy" in result:
        return f"{result['eval/accuracy']:.3f}"
    return f"failed after {result['failed_after']}"


def _rl_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_objects(folder / "metrics.jsonl") if line.get("stage") == "rl"]


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.3g}" if known else "-"


def _first_to_last(pairs: list[list[float] | None]) -> str:
    known = [pair for pair in pairs if pair is not None]
    if not known:
        return "-"
    first, last = (statistics.mean(pair[i] for pair in known) for i in (0, 1))
    return f"{first:.3g} → {last:.3g}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
