"""Records of tasks that need looking as questions, and as demonstrations for the supervised stages."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ral_system.config.choices import ResponseFormat, SupervisedStage
from ral_system.config.data import AskedLookingConfig, LookingConfig
from ral_system.data.chat import ChatRenderer
from ral_system.media.store import MediaStore
from ral_system.tasks.looking import FRAMES_PER_S, Looking, LookingRecord, Scene, Shown
from ral_system.tasks.visual_search_prompts import GLANCE, STRIDE
from ral_system.types import Media, Prompt, Sample, Split, VideoSampling

_NO_SCENE, _NO_PIXELS = Scene(1, ()), np.zeros(0, np.uint8)
"""Stand in for a record's own once the store has its media."""


class LookingQuestions:
    """Question `i` of a split is a pure function of (data seed, split, i); its media are stored when drawn.

    A command draws each record and stores its media once, for all its stages.
    """

    def __init__(
        self, config: AskedLookingConfig, renderer: ChatRenderer, media: MediaStore, described: int = 1
    ) -> None:
        self.records = Looking(config.seed, config.families, config.difficulty, described)
        self._renderer, self._media, self._drawn = renderer, media, drawn(self.records, media.folder)

    def question(self, split: Split, index: int) -> Prompt:
        """The `index`-th question of `split`, to be answered."""
        return self._question(*self._record(split, index))

    def held_out(self, count: int) -> list[Prompt]:
        """The first `count` held-out questions; families take turns, then difficulties."""
        return [self.question("held_out", i) for i in range(count)]

    def _record(self, split: Split, index: int) -> tuple[LookingRecord, tuple[Media, ...]]:
        if (split, index) not in self._drawn:
            record = self.records.record(split, index)
            kept = replace(record, shown=replace(record.shown, scene=_NO_SCENE, boards=_NO_PIXELS))
            self._drawn[split, index] = kept, self._stored(record.shown)
        return self._drawn[split, index]

    def _stored(self, shown: Shown) -> tuple[Media, ...]:
        if not shown.scene.video:
            return tuple(self._media.put(Image.fromarray(board)) for board in shown.boards)
        frames = np.repeat(shown.boards, FRAMES_PER_S, axis=0)
        sampling = VideoSampling(FRAMES_PER_S, len(frames), 2, self._renderer.family.frames_per_view)
        return (self._media.put_frames(frames, FRAMES_PER_S, sampling),)

    def _question(self, record: LookingRecord, media: tuple[Media, ...]) -> Prompt:
        return self._renderer.prompt(
            id=f"{record.split}/{record.index}",
            kind=record.kind,
            question=record.question,
            answer=record.answer,
            media=media,
            evidence=record.evidence,
        )


class LookingPrompts(LookingQuestions):
    """The questions, and demonstrations. Training records repeat after `config.train_records`."""

    def __init__(
        self, config: LookingConfig, renderer: ChatRenderer, media: MediaStore, *, response_format: ResponseFormat
    ) -> None:
        super().__init__(config, renderer, media, config.described)
        self._config, self._format = config, response_format

    def demonstration(self, stage: SupervisedStage, split: Split, index: int, *, seed: int = 0) -> Sample:
        """The `index`-th example of a supervised stage: a prompt with the response to imitate.

        perceive: say what stands at each place, in the order asked for; from the `config.search_from`-th example on,
        and in the held-out ones, then say where each thing stands. The first `config.small_boards` show the upper left
        2 × 2 cells of boards. sft: think and answer in the template; a share
        `config.glance_share` answers at a glance. A run's `seed` says where in the training records it begins.
        """
        at = index + (seed * STRIDE if split == "train" else 0)
        if stage == "perceive":
            first = index if split == "train" else sys.maxsize
            small, search = first < self._config.small_boards, first >= self._config.search_from
            return self._caption(split, at, small=small, search=search)
        record, media = self._record(split, at)
        prompt, response = self._question(record, media), f"<answer> {record.answer} </answer>"
        if self._format == "think_answer":
            thought, answer = record.thought, record.answer
            if self._at_a_glance(split, at):
                thought, answer = GLANCE, record.glance
            response = f"<think> {thought} </think> <answer> {answer} </answer>"
        return Sample(prompt.id, prompt, self._renderer.response(response))

    def _caption(self, split: Split, at: int, *, small: bool, search: bool) -> Sample:
        if small:
            shown = self.records.corner(split, self._wrapped(split, at))
            media = self._stored(shown)
        else:
            record, media = self._record(split, at)
            shown = record.shown
        question, answer = shown.caption_question, shown.caption
        if search:
            question, answer = f"{question} {shown.search_question}", f"{answer} {shown.search}".strip()
        prompt = self._renderer.prompt(
            id=f"{split}/{self._wrapped(split, at)}/caption",
            kind="caption",
            question=question,
            answer=answer,
            media=media,
        )
        return Sample(prompt.id, prompt, self._renderer.response(f"<answer> {answer} </answer>"))

    def _at_a_glance(self, split: Split, index: int) -> bool:
        """Drawn for each demonstration, not each record: a repeated record may be thought about differently."""
        rng = np.random.default_rng([self._config.seed, index, 2 if split == "train" else 3])
        return bool(rng.random() < self._config.glance_share)

    def _record(self, split: Split, index: int) -> tuple[LookingRecord, tuple[Media, ...]]:
        return super()._record(split, self._wrapped(split, index))

    def _wrapped(self, split: Split, index: int) -> int:
        return index % self._config.train_records if split == "train" else index


@functools.lru_cache(maxsize=1)
def drawn(records: Looking, media: Path) -> dict[tuple[Split, int], tuple[LookingRecord, tuple[Media, ...]]]:
    """Records that this process has drawn into a store of media, to be added to."""
    return {}
