"""Who worked when, and with how much memory: every process notes its calls, and a run's notes become one trace, an
idle share per process and a peak per call.

`logs/<role>_<rank>.spans.jsonl`, a line `{"name": "update", "start_s": 1732180000.1, "end_s": 1732180001.9,
"peak_gib": 41.2}`, in seconds of the epoch. The controller's lines are its phases, and also name their stage.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ral_system.observability.jsonl import dump, read_objects, write_atomically
from ral_system.observability.memory import take_peak_gib

TRACE_FILE = "trace.json"
CONTROLLER = "controller"
_SUFFIX = ".spans.jsonl"
_SHORTEST_S = 1e-3
"""Calls shorter than this are not recorded: handing over a completion is not work."""

Span = tuple[float, float]
"""Start and end."""


class SpanLog:
    """One process's notes. A line has left the process when `ended` returns."""

    def __init__(self, logs: Path, lane: str, **labels: str) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._file = (logs / f"{lane}{_SUFFIX}").open("a", encoding="utf-8")
        self._labels = labels

    def ended(self, name: str, seconds: float) -> None:
        """Something that took `seconds` has just ended."""
        if seconds >= _SHORTEST_S:
            now = time.time()
            times = {"start_s": round(now - seconds, 6), "end_s": round(now, 6)}
            line = {"name": name, **times, "peak_gib": round(take_peak_gib(), 4), **self._labels}
            self._file.write(dump(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Idempotent."""
        self._file.close()


def write_trace(run_folder: Path) -> None:
    """`trace.json` in Chrome's trace event format, one lane per process; https://ui.perfetto.dev opens it."""
    lanes = read_lanes(run_folder)
    begin = min((line["start_s"] for lines in lanes.values() for line in lines), default=0.0)
    events: list[dict[str, Any]] = []
    for number, (lane, lines) in enumerate(lanes.items()):
        events.append({"ph": "M", "name": "thread_name", "pid": 0, "tid": number, "args": {"name": lane}})
        events += [
            {
                "ph": "X",
                "name": line["name"],
                "pid": 0,
                "tid": number,
                "ts": round(1e6 * (line["start_s"] - begin)),
                "dur": round(1e6 * (line["end_s"] - line["start_s"])),
                "args": {"peak_gib": line.get("peak_gib")},
            }
            for line in lines
        ]
    write_atomically(run_folder / TRACE_FILE, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def idle_shares(run_folder: Path, stage: str) -> dict[str, float]:
    """Share of the stage in which each process had nothing to do, all sessions of the run together.

    A stage is when the controller is in one of its phases, so time between two sessions counts for nobody. Empty
    for a stage that left no notes.
    """
    lanes = read_lanes(run_folder)
    window = merged([(line["start_s"], line["end_s"]) for line in _of_stage(lanes, stage)])
    lanes.pop(CONTROLLER, None)
    total = sum(end - start for start, end in window)
    if not total:
        return {}
    busy = {
        lane: overlap(merged([(line["start_s"], line["end_s"]) for line in lines]), window)
        for lane, lines in lanes.items()
    }
    return {lane: 1 - seconds / total for lane, seconds in busy.items() if seconds}


def peak_memory(run_folder: Path, stage: str) -> dict[str, dict[str, float]]:
    """The most memory that each process held in each of its calls during the stage, in GiB; the controller's by phase.

    Since the process's call before: what it holds between calls counts for the next one.
    """
    lanes = read_lanes(run_folder)
    window = merged([(line["start_s"], line["end_s"]) for line in _of_stage(lanes, stage)])
    found: dict[str, dict[str, float]] = {}
    for lane, lines in lanes.items():
        for line in lines:
            inside = line.get("stage", stage) == stage and overlap([(line["start_s"], line["end_s"])], window)
            if inside and "peak_gib" in line:
                peaks = found.setdefault(lane, {})
                peaks[line["name"]] = max(line["peak_gib"], peaks.get(line["name"], 0.0))
    return found


class PeakMemory:
    """Peaks of the calls that end during a run, read from its notes as they grow."""

    def __init__(self, run_folder: Path) -> None:
        """Leave out what an earlier session has noted."""
        self._run_folder = run_folder
        self._read = {file: file.stat().st_size for file in _files(run_folder)}

    def take(self) -> dict[str, float]:
        """The most memory of each role in each of its calls since the last one, as metrics in GiB.

        Example: `{"memory/learner/update_gib": 41.2, "memory/rollout/generate_gib": 70.1}`; the rank that held most
        counts. A call that is noted later, or that has not ended, is in the next answer.
        """
        found: dict[str, float] = {}
        for file in _files(self._run_folder):
            role = re.sub(r"_\d+$", "", file.name.removesuffix(_SUFFIX))
            for line in self._new_lines(file):
                name = f"memory/{role}/{line['name']}_gib"
                found[name] = max(line["peak_gib"], found.get(name, 0.0))
        return found

    def _new_lines(self, file: Path) -> list[dict[str, Any]]:
        with file.open("rb") as opened:
            opened.seek(self._read.get(file, 0))
            whole, end, _ = opened.read().rpartition(b"\n")
        self._read[file] = self._read.get(file, 0) + len(whole + end)
        return [json.loads(line) for line in whole.splitlines()]


def _of_stage(lanes: Mapping[str, Sequence[dict[str, Any]]], stage: str) -> list[dict[str, Any]]:
    return [line for line in lanes.get(CONTROLLER, []) if line.get("stage") == stage]


def merged(spans: Sequence[Span]) -> list[Span]:
    """Merge overlapping spans, in order."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def overlap(a: Sequence[Span], b: Sequence[Span]) -> float:
    """Seconds in both; each in order and without overlaps in itself."""
    seconds, i, j = 0.0, 0, 0
    while i < len(a) and j < len(b):
        seconds += max(0.0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return seconds


def read_lanes(run_folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the notes of every process by its name, the controller's first."""
    files = _files(run_folder)
    return {f.name.removesuffix(_SUFFIX): [line for line in read_objects(f) if "end_s" in line] for f in files}


def _files(run_folder: Path) -> list[Path]:
    """Notes of every process, the controller's first."""
    found = (run_folder / "logs").glob(f"*{_SUFFIX}")
    return sorted(found, key=lambda f: (f.name != CONTROLLER + _SUFFIX, f.name))
