"""A frozen teacher: its token distributions and attention on the student's own rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ral_system.algorithms.token_read import TokenRead
from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import TensorBatch
from ral_system.config.algorithm import AlgorithmConfig
from ral_system.config.teacher import TeacherConfig, TeacherRole
from ral_system.errors import DataError, SetupError
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.scoring.frozen import FrozenScorer
from ral_system.scoring.scores import to_teaching
from ral_system.types import Media, MicroBatch, Sample, Scores


class TeacherScorer(FrozenScorer):
    """Token distributions and attention of a teacher; `role` says which of the two it teaches.

    The two models must read the same token ids (SetupError when they are loaded) and lay the same grid of visual
    tokens over every medium (DataError when one is met).
    """

    def __init__(
        self,
        algorithm: AlgorithmConfig,
        teacher: TeacherConfig,
        role: TeacherRole,
        model_folder: Path,
        student_folder: Path,
        media: MediaStore,
        *,
        temperature: float,
        gpus: int = 1,
    ) -> None:
        read = replace(AttentionRead.of(algorithm.attention), layers="last")
        dtype, max_tokens = teacher.dtype, teacher.max_tokens
        super().__init__(
            model_folder, media, read, dtype=dtype, temperature=temperature, max_tokens=max_tokens, gpus=gpus
        )
        self._attention, top_k = algorithm.attention, algorithm.distillation.tokens.top_k
        self._tokens = TokenRead(top=top_k, whole=top_k is None) if role.tokens else None
        self._read = read if role.attention else None
        self._family, self._student = self._policy.family, load_family(student_folder)
        check_same_tokenizer(self._family.tokenizer, self._student.tokenizer, model_folder, student_folder)
        self._compare_vocabularies(model_folder, student_folder)

    def _compare_vocabularies(self, model_folder: Path, student_folder: Path) -> None:
        """The width of a vocabulary may be padded; ids that the student does not have are banned from the teacher."""
        mine, students = (family.config.get_text_config().vocab_size for family in (self._family, self._student))
        if mine != students and self._tokens and self._tokens.whole:
            raise SetupError(
                f"teacher {model_folder} has a vocabulary of {mine} tokens, the student one of {students}, so "
                "whole distributions cannot be compared; set algorithm.distillation.tokens.top_k"
            )
        padding = torch.arange(students, max(mine, students), device=self._device)
        self._policy.banned_token_ids = torch.cat([self._policy.banned_token_ids, padding])

    def score(self, samples: Sequence[Sample]) -> None:
        """Score the samples, and hold their scores. Raises DataError if a medium has a different grid for the
        student.
        """
        for sample in samples:
            self._check_grids(sample)
        super().score(samples)

    def _pass(self, batch: TensorBatch, samples: MicroBatch) -> Scores:
        output = self._policy(batch, [self._read] if self._read else [], self._tokens)
        return to_teaching(output, samples, self._attention, read=self._read)

    def _check_grids(self, sample: Sample) -> None:
        for media in sample.prompt.media:
            mine, students = (family.layout(media) for family in (self._family, self._student))
            if mine != students:
                raise DataError(
                    f"sample {sample.id}: {media.kind} of {_by(media)} px has visual tokens {students} for the "
                    f"student but {mine} for the teacher; choose one with the same patches and pixel limits"
                )


def check_same_tokenizer(teacher: Any, student: Any, teacher_folder: Path, student_folder: Path) -> None:
    """Raise SetupError unless both tokenizers give every token the same id."""
    mine, students = (tokenizer.get_vocab() for tokenizer in (teacher, student))
    if mine == students:
        return
    token = min(t for t in mine.keys() | students.keys() if mine.get(t) != students.get(t))
    raise SetupError(
        f"teacher {teacher_folder} has a different tokenizer from {student_folder}: token {token!r} is "
        f"{mine.get(token, 'not there')} to the teacher and {students.get(token, 'not there')} to the student; "
        "choose a teacher with the same tokenizer"
    )


def _by(media: Media) -> str:
    return f"{media.width_px} x {media.height_px}"
