"""The `logging` group: where metrics go besides `metrics.jsonl`."""

from __future__ import annotations

from typing import Literal

from ral_system.config.base import Group, NonNegative, Positive

WandbRecording = Literal["online", "offline"]
WandbMode = Literal[WandbRecording, "disabled"]
WandbChoice = Literal["auto", WandbMode]


class PreviewConfig(Group):
    """Contents of the page of `ral-data`."""

    preview_rows: Positive
    """Number of training rows on the page. It also shows up to as many rows that were left out, and a third as many
    held-out rows."""


class LoggingConfig(Group):
    """Where metrics go besides `metrics.jsonl`."""

    wandb: WandbChoice
    """Mode of W&B. auto: online if W&B finds a login, otherwise offline. W&B's own settings (`WANDB_MODE`,
    `WANDB_DISABLED`, `wandb offline`) also apply, and the most restrictive one wins: `WANDB_MODE=offline` keeps an
    online run offline."""
    wandb_project: str
    """Project in W&B. `WANDB_PROJECT` replaces it, as `WANDB_NAME` replaces the name of the run and `WANDB_DIR` its
    folder."""
    groups_per_step: NonNegative
    """Number of prompts per step whose rollouts, the whole group, are stored with their text in `rollouts.jsonl`. 0
    stores none, `${algorithm.prompts_per_step}` all."""
    report_every: Positive
    """Number of RL steps between updates of `report.html`."""
