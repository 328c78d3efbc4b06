"""A frozen model that teaches: what it would say and where it would look on the student's own rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ral_system.attention.provenance import Grid
from ral_system.config.schema import RunConfig
from ral_system.data.visual_tokens import VisualTokens
from ral_system.errors import DataError, SetupError
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_processor
from ral_system.scoring.build import build_collator, build_policy
from ral_system.scoring.scores import to_teaching
from ral_system.types import Media, Sample, Scores


class TeacherScorer:
    """Scores samples as they come and holds the result until it is taken.

    `tokens` and `attention` say what it teaches. The two models must read the same token ids (SetupError when they are
    loaded) and lay the same grid of visual tokens over every medium (DataError when one is met).
    """

    def __init__(
        self,
        config: RunConfig,
        model_folder: Path,
        student_folder: Path,
        media: MediaStore,
        *,
        tokens: bool,
        attention: bool,
    ) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._config, self._tokens, self._attention = config, tokens, attention
        processor, student = load_processor(model_folder), load_processor(student_folder)
        check_same_tokenizer(processor, student, model_folder, student_folder)
        self._visual, self._student_visual = VisualTokens(processor), VisualTokens(student)
        policy = build_policy(config, model_folder, self._device, dtype=config.teacher.dtype, layers="last")
        self._policy = policy.to(self._device).eval().requires_grad_(False)
        self._compare_vocabularies(model_folder, student_folder)
        self._collate = build_collator(config, processor, media)
        self._scores: Scores = {}

    def _compare_vocabularies(self, model_folder: Path, student_folder: Path) -> None:
        """The width of a vocabulary may be padded; ids that the student does not have are banned from the teacher."""
        mine, students = (vocabulary_width(folder) for folder in (model_folder, student_folder))
        if mine != students and self._tokens and self._config.algorithm.distillation.tokens.top_k is None:
            raise SetupError(
                f"teacher {model_folder} has a vocabulary of {mine} tokens, the student one of {students}, and they "
                "cannot be compared whole; set algorithm.distillation.tokens.top_k"
            )
        padding = torch.arange(students, max(mine, students), device=self._device)
        self._policy.banned_token_ids = torch.cat([self._policy.banned_token_ids, padding])

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> None:
        """Score and hold. Raises DataError when a medium has another grid for the student."""
        size = self._config.teacher.micro_batch
        for sample in samples:
            self._check_grids(sample)
        for i in range(0, len(samples), size):
            micro_batch = tuple(samples[i : i + size])
            batch = self._collate(micro_batch).to(self._device)
            output = self._policy(batch, with_attention=self._attention)
            self._scores |= to_teaching(output, batch, micro_batch, self._config, tokens=self._tokens)

    def take(self, ids: Sequence[str]) -> Scores:
        """Hand over these samples' scores and forget them."""
        return {id: self._scores.pop(id) for id in ids}

    def _check_grids(self, sample: Sample) -> None:
        for media in sample.prompt.media:
            mine, students = (visual.grid(media) for visual in (self._visual, self._student_visual))
            if mine != students:
                raise DataError(
                    f"sample {sample.id}: {media.kind} of {_by(media)} px has visual tokens {_times(students)} for the "
                    f"student but {_times(mine)} for the teacher; choose one with the same patches and pixel limits"
                )


def check_same_tokenizer(teacher: Any, student: Any, teacher_folder: Path, student_folder: Path) -> None:
    """Raise SetupError unless both processors' tokenizers give every token the same id."""
    mine, students = (processor.tokenizer.get_vocab() for processor in (teacher, student))
    if mine == students:
        return
    token = min(t for t in mine.keys() | students.keys() if mine.get(t) != students.get(t))
    raise SetupError(
        f"teacher {teacher_folder} has another tokenizer than {student_folder}: token {token!r} is "
        f"{mine.get(token, 'not there')} to the teacher and {students.get(token, 'not there')} to the student; "
        "choose a teacher with the same tokenizer"
    )


def vocabulary_width(folder: Path) -> int:
    """Tokens that a model's output distinguishes, padding included."""
    return int(AutoConfig.from_pretrained(folder).get_text_config().vocab_size)


def _by(media: Media) -> str:
    return f"{media.width_px} x {media.height_px}"


def _times(grid: Grid) -> str:
    return " x ".join(map(str, grid))
