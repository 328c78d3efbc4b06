"""What a run records while it goes: `metrics.jsonl` (scalars per step) and `rollouts.jsonl` (texts for the report).

A line of `metrics.jsonl`, one per stage and step:
`{"stage": "rl", "step": 3, "time_s": 41.2, "reward/total": 0.71, "policy/kl": 0.002}`

A line of `rollouts.jsonl`:
`{"stage": "rl", "step": 0, "phase": "before_rl", "id": "held_out/4#0", "question": "what colour …",
"kind": "attribute", "answer": "red", "response": "<think> …", "reward_parts": {"correctness": 1.0, "format": 1.0},
"reward": 1.0, "status": "ok", "advantage": 0.0, "weight_version": 12, "switches": [[7, 13]], "restarts": 0,
"seed": 4611686018427387904, "media": [{"digest": "9f86d0…", "width_px": 84, "height_px": 84, "clip": null}],
"overlays": [[[[0.1, …], …]]]}`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ral_system.config.choices import Stage
from ral_system.config.logging import LoggingConfig
from ral_system.observability.jsonl import JsonLines
from ral_system.observability.wandb_sink import WandbSink
from ral_system.types import Media, Rollout

METRICS_FILE = "metrics.jsonl"
ROLLOUTS_FILE = "rollouts.jsonl"
COMMANDS_FILE = "commands.jsonl"
Phase = Literal["train", "before_rl", "after_rl"]
_RESERVED = frozenset({"stage", "step", "time_s"})


class MetricsLog:
    """Appends every step's metrics to `<folder>/metrics.jsonl` and mirrors them to W&B, as one run for all stages."""

    def __init__(
        self,
        folder: Path,
        config: LoggingConfig,
        run_name: str,
        resolved_config: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = JsonLines(folder / METRICS_FILE)
        self._wandb = WandbSink(folder, config, run_name, resolved_config)
        self._clock = clock
        self._stage: Stage | None = None
        self._stage_began = self._last_write = clock()

    def write(self, stage: Stage, step: int, metrics: Mapping[str, float]) -> None:
        """Record one step. `time_s` counts from the end of the preceding stage, or from the opening of this log.

        A second call for the newest step adds to its line; times add up, other metrics take the new value.
        """
        if clash := _RESERVED & metrics.keys():
            raise ValueError(f"metric names {sorted(clash)} are taken; give them a slash name")
        now = self._clock()
        if stage != self._stage:
            self._stage, self._stage_began = stage, self._last_write if self._stage else self._stage_began
        self._last_write = now
        row = {name: float(value) for name, value in metrics.items()}
        line = {"stage": stage, "step": int(step), "time_s": round(now - self._stage_began, 3)}
        last = self._lines.last
        if last is not None and (last["stage"], last["step"]) == (stage, line["step"]):
            self._lines.replace_last({**last, **line, **_added(last, row)})
        else:
            self._lines.append({**line, **row})
        self._wandb.write(stage, step, row)

    @property
    def lines(self) -> int:
        """Lines written so far, by all sessions of the run; a checkpoint remembers it."""
        return self._lines.lines

    def truncate(self, stage: Stage, step: int, lines: int | None = None) -> None:
        """Drop the lines after the checkpoint at `step`, which had `lines`, before `stage` resumes.

        The clock of the stage continues from its last kept line.
        """
        kept = self._lines.truncate(stage, step, lines)
        spent_s = max((record["time_s"] for record in kept if record["stage"] == stage), default=0.0)
        self._stage, self._last_write = stage, self._clock()
        self._stage_began = self._last_write - spent_s

    def close(self, *, failed: bool = False) -> None:
        """Flush everything; W&B shows a run that `failed` as such. Idempotent."""
        self._lines.close()
        self._wandb.close(failed=failed)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.close(failed=error is not None)


def _added(line: Mapping[str, Any], row: Mapping[str, float]) -> dict[str, float]:
    return {name: (line.get(name) or 0.0) + value if name.startswith("time/") else value for name, value in row.items()}


class RolloutLog:
    """Appends rollouts with their texts, and where their rows look, to `<folder>/rollouts.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._lines = JsonLines(folder / ROLLOUTS_FILE)

    def write(self, stage: Stage, step: int, phase: Phase, rollout: Rollout, maps: Sequence[np.ndarray] = ()) -> None:
        """Record one rollout. `maps`: its answer rows' attention on each visual token, per medium [frames, h, w]."""
        prompt, completion, reward = rollout.prompt, rollout.completion, rollout.reward
        if wrong := [m.shape for m in maps if m.ndim != 3]:
            raise ValueError(f"maps must be [frames, h, w], got shape {wrong[0]}")
        self._lines.append(
            {
                "stage": stage,
                "step": int(step),
                "phase": phase,
                "id": completion.id,
                "question": prompt.question,
                "kind": prompt.kind,
                "answer": prompt.answer,
                "response": completion.text,
                "reward_parts": {name: float(value) for name, value in reward.parts.items()},
                "reward": float(reward.total),
                "status": str(reward.status),
                "detail": reward.detail,
                "advantage": float(rollout.advantage),
                "weight_version": completion.weight_version,
                "switches": [list(switch) for switch in completion.switches],
                "restarts": completion.restarts,
                "seed": completion.seed,
                "media": [asdict(media) for media in prompt.media],
                "overlays": [m.astype(float).tolist() for m in maps],
            }
        )

    @property
    def lines(self) -> int:
        """Lines written so far, by all sessions of the run; a checkpoint remembers it."""
        return self._lines.lines

    def truncate(self, stage: Stage, step: int, lines: int | None = None) -> None:
        """Drop the lines after the checkpoint at `step`, which had `lines`, before `stage` resumes."""
        self._lines.truncate(stage, step, lines)

    def close(self) -> None:
        """Idempotent."""
        self._lines.close()

    def __enter__(self) -> RolloutLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def recorded_media(record: Mapping[str, Any]) -> list[Media]:
    """The media of a line of `rollouts.jsonl`. A bare digest is a picture of unknown size: 0 px.

    Raises KeyError, TypeError or AttributeError for a line that `RolloutLog` did not write.
    """
    return [Media(line, 0, 0) if isinstance(line, str) else Media.parse(line) for line in record.get("media") or []]
