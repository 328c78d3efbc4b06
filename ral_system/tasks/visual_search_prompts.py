"""Visual-search records as questions, and as demonstrations for the supervised stages."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ral_system.config.choices import ResponseFormat, SupervisedStage
from ral_system.config.data import AskedBoardsConfig, BoardsConfig, VisualSearchConfig
from ral_system.data.chat import ChatRenderer
from ral_system.errors import DataError
from ral_system.media.store import MediaStore
from ral_system.tasks.demonstrations import Demonstration, read_demonstrations
from ral_system.tasks.visual_search import KINDS, MAX_GRID, Record, VisualSearch
from ral_system.types import Media, Prompt, Region, Sample, Split

GLANCE = "glance"
"""Thought of a demonstration that looks nothing up."""

_STORED = Image.new("RGB", (1, 1))
"""Stands in for a record's picture once the store has it."""

STRIDE = 7919
"""Distance between the first records of two seeds: a prime, so few coincide for any number of records."""


class VisualSearchRecords:
    """The records that `config` asks for. Sizes of boards take turns: one of each question kind, then the next."""

    def __init__(self, config: BoardsConfig, described: int = MAX_GRID**2) -> None:
        self.sizes = tuple(
            VisualSearch(config.seed, n, min(config.objects, n * n), config.digits, described) for n in config.grid
        )

    def record(self, split: Split, index: int) -> Record:
        """The `index`-th record of `split`."""
        return self.sizes[index // len(KINDS) % len(self.sizes)].record(split, index)


class VisualSearchQuestions:
    """Question `i` of a split is a pure function of (data seed, split, i); its picture is stored when drawn.

    A command draws each record and stores its picture once, for all its stages.
    """

    def __init__(
        self, config: AskedBoardsConfig, renderer: ChatRenderer, media: MediaStore, described: int = MAX_GRID**2
    ) -> None:
        self.records, self._renderer, self._media = VisualSearchRecords(config, described), renderer, media
        self._drawn = drawn(self.records.sizes, media.folder)

    def question(self, split: Split, index: int) -> Prompt:
        """The `index`-th question of `split`, to be answered."""
        return self._question(*self._record(split, index))

    def held_out(self, count: int) -> list[Prompt]:
        """The first `count` held-out questions; kinds take turns."""
        return [self.question("held_out", i) for i in range(count)]

    def _question(self, record: Record, picture: Media) -> Prompt:
        return self._prompt(
            record, picture, record.kind, record.question, record.answer, suffix="", evidence=record.evidence
        )

    def _record(self, split: Split, index: int) -> tuple[Record, Media]:
        if (split, index) not in self._drawn:
            record = self.records.record(split, index)
            self._drawn[split, index] = replace(record, image=_STORED), self._media.put(record.image)
        return self._drawn[split, index]

    def _prompt(
        self,
        record: Record,
        picture: Media,
        kind: str,
        question: str,
        answer: str,
        *,
        suffix: str,
        evidence: Sequence[Region] = (),
    ) -> Prompt:
        return self._renderer.prompt(
            id=f"{record.split}/{record.index}{suffix}",
            kind=kind,
            question=question,
            answer=answer,
            media=(picture,),
            evidence=evidence,
        )


class VisualSearchPrompts(VisualSearchQuestions):
    """The questions, and demonstrations. Training records repeat after `config.train_records`."""

    def __init__(
        self, config: VisualSearchConfig, renderer: ChatRenderer, media: MediaStore, *, format: ResponseFormat
    ) -> None:
        super().__init__(config, renderer, media, config.described)
        small = config.model_copy(update={"grid": (2,)})
        self._small = VisualSearchQuestions(small, renderer, media, config.described)
        self._config, self._format = config, format

    def demonstration(self, stage: SupervisedStage, split: Split, index: int, *, seed: int = 0) -> Sample:
        """The `index`-th example of a supervised stage: a prompt with the response to imitate.

        A run's `seed` says where in the training records it begins; seed 0 at the first.
        perceive: name what stands at each position, in the order asked for; from the `config.search_from`-th example
        on, and in the held-out ones, then say where each thing stands. The first `config.small_boards` are on boards of
        2 × 2 cells. sft: think and answer in the template; a share
        `config.glance_share` of them looks nothing up and answers at a glance. With `config.demonstrations`, sft's are
        those of the file, in turn; with `config.sft_in_words` they have the board in words in place of the picture.
        Raises DataError for one that does not fit the question or the tokenizer.
        """
        at = index + (seed * STRIDE if split == "train" else 0)
        if stage == "sft" and split == "train" and self._config.demonstrations:
            return self._from_file(*self._demonstrations[at % len(self._demonstrations)])
        small = stage == "perceive" and split == "train" and index < self._config.small_boards
        record, picture = (self._small if small else self)._record(split, self._wrapped(split, at))
        if stage == "perceive":
            question, answer = record.caption_question, record.caption
            if split == "held_out" or index >= self._config.search_from:
                question, answer = f"{question} {record.search_question}", f"{answer} {record.search}".strip()
            prompt = self._prompt(record, picture, "caption", question, answer, suffix="/caption")
            response = f"<answer> {answer} </answer>"
        else:
            thought, answer = record.thought, record.answer
            if self._format == "answer_only":
                response = f"<answer> {answer} </answer>"
            else:
                if self._at_a_glance(split, at):
                    thought, answer = GLANCE, record.glance
                response = f"<think> {thought} </think> <answer> {answer} </answer>"
            prompt = self._in_words(record) if self._config.sft_in_words else self._question(record, picture)
        return Sample(prompt.id, prompt, self._renderer.response(response))

    def _in_words(self, record: Record) -> Prompt:
        return self._renderer.prompt(
            id=f"{record.split}/{record.index}/words",
            kind=record.kind,
            question=f"{record.board} {record.question}",
            answer=record.answer,
            media=(),
        )

    @functools.cached_property
    def _demonstrations(self) -> list[tuple[Demonstration, tuple[int, ...]]]:
        """Read all demonstrations with their token ids, so an unusable one is found before the first step."""
        path, found = Path(self._config.demonstrations or ""), []
        for demonstration in read_demonstrations(path):
            try:
                found.append((demonstration, self._renderer.response(demonstration.response)))
            except ValueError as error:
                raise DataError(f"data.demonstrations={path}: train/{demonstration.index}: {error}") from error
        return found

    def _from_file(self, demonstration: Demonstration, token_ids: tuple[int, ...]) -> Sample:
        prompt = self._question(*self._record("train", demonstration.index))
        if prompt.question != demonstration.question:
            raise DataError(
                f"data.demonstrations={self._config.demonstrations}: the demonstration of {prompt.id} answers "
                f"{demonstration.question!r}, but here the question is {prompt.question!r}; set data.seed, data.grid, "
                "data.objects and data.digits as in the run of ral-synthesize"
            )
        return Sample(prompt.id, prompt, token_ids)

    def _at_a_glance(self, split: Split, index: int) -> bool:
        """Drawn for each demonstration, not each record: a repeated record may be thought about differently."""
        rng = np.random.default_rng([self._config.seed, index, 2 if split == "train" else 3])
        return bool(rng.random() < self._config.glance_share)

    def _record(self, split: Split, index: int) -> tuple[Record, Media]:
        return super()._record(split, self._wrapped(split, index))

    def _wrapped(self, split: Split, index: int) -> int:
        return index % self._config.train_records if split == "train" else index


@functools.lru_cache(maxsize=2)  # small boards and those of the run
def drawn(sizes: tuple[VisualSearch, ...], media: Path) -> dict[tuple[Split, int], tuple[Record, Media]]:
    """Records of these boards that this process has drawn into a store of media, to be added to."""
    return {}
