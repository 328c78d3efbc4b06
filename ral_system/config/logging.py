"""The `logging` group: where metrics go besides `metrics.jsonl`."""

from __future__ import annotations

from typing import Literal

from ral_system.config.base import Group, NonNegative, Positive

WandbRecording = Literal["online", "offline"]
WandbMode = Literal[WandbRecording, "disabled"]
WandbChoice = Literal["auto", WandbMode]


class PreviewConfig(Group):
    """What the page of `ral-data` shows."""

    preview_rows: Positive
    """Training rows on the page, as many that were left out, and a third as many held-out ones."""


class LoggingConfig(Group):
    """Where metrics go besides `metrics.jsonl`."""

    wandb: WandbChoice
    """auto: online where W&B finds a login, offline elsewhere. W&B's own settings (WANDB_MODE, WANDB_DISABLED, `wandb
    offline`) count too, and of all of them the one that uploads less: WANDB_MODE=offline keeps online runs offline."""
    wandb_project: str
    """WANDB_PROJECT takes its place, as WANDB_NAME does for the run's name and WANDB_DIR for its folder."""
    groups_per_step: NonNegative
    """Prompts per step whose rollouts, the whole group, are kept with text in `rollouts.jsonl`; 0 keeps none,
    `${algorithm.prompts_per_step}` all."""
    report_every: Positive
    """RL steps between rewrites of `report.html`."""
