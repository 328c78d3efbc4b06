"""Data of a run for its report, read from its folder. Nothing is required: a run may still be in progress."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ral_system.config.choices import STAGES, Stage
from ral_system.errors import GATE_COUNTERS
from ral_system.observability.jsonl import read_lines, read_objects
from ral_system.observability.metrics import COMMANDS_FILE, METRICS_FILE, ROLLOUTS_FILE

Points = list[tuple[int, float | None]]
"""Pairs (step, value) in step order; None if the recorded value was not finite."""


@dataclass(frozen=True, slots=True)
class RunData:
    """Parsed files of a run folder."""

    name: str
    metrics: list[dict[str, Any]]
    rollouts: list[dict[str, Any]]
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    config_text: str
    commands: list[dict[str, Any]]

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been recorded yet."""
        return not (self.metrics or self.rollouts or self.summary)

    def points(self, stage: Stage, key: str) -> Points:
        """Return the series of a metric in a stage. If a step is recorded twice, its last value counts."""
        found = {row["step"]: row[key] for row in self.metrics if row["stage"] == stage and key in row}
        return sorted(found.items())

    def keys(self, stage: Stage, prefix: str) -> list[str]:
        """Return the names of metrics of `stage` with a prefix, in order of first appearance."""
        names = (key for row in self.metrics if row["stage"] == stage for key in row if key.startswith(prefix))
        return list(dict.fromkeys(names))

    def last_step(self, stage: Stage) -> int | None:
        """Return the newest step of `stage`, or None if it has not begun."""
        return max((row["step"] for row in self.metrics if row["stage"] == stage), default=None)

    def setting(self, *path: str) -> Any:
        """Return a value of config.yaml, or None."""
        return _dig(self.config, *path)


@dataclass(frozen=True, slots=True)
class Headline:
    """Numbers at the top of the report; None if the run has not reached them yet."""

    accuracy_before: float | None
    accuracy_after: float | None
    format_rate: float | None
    steps: dict[str, int]
    wall_time_s: float | None
    log_prob_diff_max: float | None
    gates_failed: int | None
    alarms: int
    """Steps on which an alarm rang."""
    finished: bool


def read_run(folder: Path) -> RunData:
    """Read the files that exist. Damaged lines and files count as absent."""
    config_text = _text(folder / "config.yaml")
    return RunData(
        name=folder.resolve().name,
        metrics=read_lines(folder / METRICS_FILE),
        rollouts=read_lines(folder / ROLLOUTS_FILE),
        summary=_mapping(_json, _text(folder / "summary.json")),
        config=_mapping(_yaml, config_text),
        config_text=config_text,
        commands=read_objects(folder / COMMANDS_FILE),
    )


def headline(run: RunData) -> Headline:
    """Read the headline figures from `summary.json` (see `controller.summary`), or else from the metrics so far."""
    summary = run.summary
    accuracy = [value for _, value in run.points("rl", "eval/accuracy")]
    cold_start = [value for _, value in run.points("sft", "eval/accuracy")]
    formats = [value for key in ("reward/format", "eval/format_rate") for _, value in run.points("rl", key)]
    gaps = [value for _, value in run.points("rl", "gate/log_prob_diff_max") if value is not None]
    ends = [max((row.get("time_s") or 0.0 for row in run.metrics if row["stage"] == s), default=0.0) for s in STAGES]
    walls = [_number(_dig(summary, "wall_s", stage, "total")) for stage in STAGES]
    failures = [_number(summary.get(key)) for key in GATE_COUNTERS]
    known_failures = [int(value) for value in failures if value is not None]
    after = _number(summary.get("held_out_accuracy_after_rl"))
    return Headline(
        accuracy_before=_number(summary.get("held_out_accuracy_after_sft"), *accuracy[:1], *cold_start[-1:]),
        accuracy_after=_number(after, *(accuracy[-1:] if len(accuracy) > 1 else [])),
        format_rate=_number(summary.get("format_rate_after_rl"), *formats[-1:]),
        steps={stage: step for stage in STAGES if (step := run.last_step(stage)) is not None},
        wall_time_s=sum(wall or end for wall, end in zip(walls, ends, strict=True)) or None,
        log_prob_diff_max=_number(summary.get("max_abs_logprob_diff"), max(gaps, default=None)),
        gates_failed=sum(known_failures) if known_failures else 0 if gaps else None,  # a failure rewrites the summary
        alarms=len({step for key in run.keys("rl", "alarm/") for step, value in run.points("rl", key) if value == 1}),
        finished=after is not None,
    )


def _number(*candidates: Any) -> float | None:
    for value in candidates:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _dig(mapping: Any, *path: str) -> Any:
    for key in path:
        if not isinstance(mapping, Mapping):
            return None
        mapping = mapping.get(key)
    return mapping


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _json(text: str) -> Any:
    return json.loads(text)


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _mapping(parse: Any, text: str) -> Mapping[str, Any]:
    try:
        parsed = parse(text)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
