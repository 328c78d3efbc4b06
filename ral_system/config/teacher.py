"""The `teacher` group: teacher models for `algorithm.distillation`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from ral_system.config.algorithm import AlgorithmConfig
from ral_system.config.base import Group, Positive, Resumable
from ral_system.config.choices import Dtype
from ral_system.config.inert import without_effect


class TeacherConfig(Group):
    """Teacher models for `algorithm.distillation`. They may have any size, and need the student's tokenizer and visual
    grid."""

    path: str | None
    """Folder or Hub name of the teacher in Hugging Face format."""
    attention_path: str | None
    """Folder or Hub name of a separate teacher for attention. null: the same teacher."""
    dtype: Dtype
    """Data type of the weights and of computation."""
    max_tokens: Annotated[Positive, Resumable]
    """Largest number of tokens per forward pass, counted as for `learner.max_tokens`."""


@dataclass(frozen=True, slots=True)
class TeacherRole:
    """A teacher model, and which of tokens and attention it teaches."""

    field: str
    """Key that names it: `teacher.path`."""
    path: str
    tokens: bool
    attention: bool


def teachers_are_used(algorithm: AlgorithmConfig, teacher: TeacherConfig) -> Iterator[str]:
    """Check that every weight of distillation has a teacher, and every teacher a weight."""
    teach, path, other = algorithm.distillation, teacher.path, teacher.attention_path
    tokens, attention = teach.tokens.weight, teach.attention.weight
    for part, weight, found in (("tokens", tokens, path), ("attention", attention, other or path)):
        if weight > 0 and found is None:
            yield (
                f"algorithm.distillation.{part}.weight={weight:g} needs a teacher; set teacher.path to a model folder"
            )
    for field, given, uses in (
        ("path", path, tokens > 0 or (attention > 0 and not other)),
        ("attention_path", other, attention > 0),
    ):
        if given is not None and not uses:
            yield (
                f"teacher.{field}={given} has no effect: no weight of algorithm.distillation asks for it; "
                "choose algorithm=distill or attention_distill, or set it to null"
            )
    if tokens == attention == 0:
        reason = "algorithm.distillation.{tokens.weight=0,attention.weight=0}"
        remedy = "choose algorithm=distill or attention_distill"
        yield from without_effect(teacher, "teacher", reason, remedy, "dtype", "max_tokens")
