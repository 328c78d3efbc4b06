"""The `checkpoint` group: what is saved and when."""

from __future__ import annotations

from ral_system.config.base import Group, Positive


class CheckpointConfig(Group):
    """What is saved and when."""

    every: Positive
    """RL steps between checkpoints."""
    supervised_every: Positive
    """Steps between checkpoints in the supervised stages, whose steps are short."""
    keep: Positive
    """Newest complete checkpoints kept per stage."""
