"""The `checkpoint` group: how often checkpoints are saved, and how many are kept."""

from __future__ import annotations

from ral_system.config.base import Group, Positive


class CheckpointConfig(Group):
    """How often checkpoints are saved, and how many are kept."""

    every: Positive
    """Number of RL steps between checkpoints."""
    supervised_every: Positive
    """Number of steps between checkpoints in the supervised stages, whose steps are shorter."""
    keep: Positive
    """Number of complete checkpoints kept per stage, the newest ones."""
