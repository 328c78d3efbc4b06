"""Steps on Ray: how long each phase takes, and for how much of it none of the processes works."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ral_system.observability.jsonl import read_objects
from ral_system.observability.timeline import merged, overlap, read_lanes

PHASES = ("rollout", "score", "update", "sync", "reward", "data")
PHASE, IDLE = "phase", "no process works: Ray and the controller"


def of_run(folder: Path) -> dict[str, dict[str, float]]:
    """Milliseconds of the phases of a run's rl steps after the first, and how much of them is nobody's work."""
    rows = [
        row for row in read_objects(folder / "metrics.jsonl") if row.get("stage") == "rl" and "time/update_s" in row
    ]
    if len(rows) < 2:
        raise ValueError(f"{folder}: fewer than two steps of rl, and the first one does not count")
    idle = _idle(folder, len(rows) - 1)
    return {
        phase: {PHASE: 1e3 * statistics.median(row[f"time/{phase}_s"] for row in rows[1:]), IDLE: idle[phase]}
        for phase in PHASES
        if all(f"time/{phase}_s" in row for row in rows)
    }


def _idle(folder: Path, steps: int) -> dict[str, float]:
    """Mean over the last `steps` steps, which end with the end of a phase `sync`."""
    controller, *others = read_lanes(folder).values()
    busy = merged([(line["start_s"], line["end_s"]) for lines in others for line in lines])
    lines = [line for line in controller if line.get("stage") == "rl"]
    publications = [line["end_s"] for line in lines if line["name"] == "sync"]
    inside = [
        line for line in lines if publications[-1 - steps] <= line["start_s"] and line["end_s"] <= publications[-1]
    ]
    found: dict[str, Any] = dict.fromkeys(PHASES, 0.0)
    for line in inside:
        if line["name"] in found:
            span = (line["start_s"], line["end_s"])
            found[line["name"]] += 1e3 * (span[1] - span[0] - overlap(busy, [span])) / steps
    return found
