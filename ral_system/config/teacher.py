"""The `teacher` group: teacher models for `algorithm.distillation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ral_system.config.base import Group, Positive, Resumable
from ral_system.config.choices import Dtype


class TeacherConfig(Group):
    """Teacher models for `algorithm.distillation`, of any size, with the student's tokenizer and visual grid."""

    path: str | None
    """Folder or hub name in Hugging Face format."""
    attention_path: str | None
    """Another teacher for the attention alone; null: the same."""
    dtype: Dtype
    max_tokens: Annotated[Positive, Resumable]
    """Tokens per forward pass, as in `learner.max_tokens`."""


@dataclass(frozen=True, slots=True)
class TeacherRole:
    """One model that teaches, and what."""

    path: str
    tokens: bool
    attention: bool
