"""Questions from files, in an endless order that the seed fixes."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ral_system.config.choices import ResponseFormat, SupervisedStage
from ral_system.config.data import FilesConfig
from ral_system.data.chat import ChatRenderer
from ral_system.data.preparation import QUARANTINE_FILE, PreparedQuestion, drawn, read_prepared
from ral_system.errors import DataError
from ral_system.types import Media, Prompt, Sample, Split

_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7)
_MIX, _SOURCES = 0, 1  # streams of randomness: of the mix, and of the sources from here on


class FilePrompts:
    """The questions that `Preparation` left in `folder`.

    A pass over the mix takes `weight` rows for every row of a source, in random order: the next of the source's own
    endless sequence, in which every row comes once before any comes again. All of it is a function of `config.seed`.
    """

    def __init__(
        self, config: FilesConfig, folder: Path, renderer: ChatRenderer, *, response_format: ResponseFormat
    ) -> None:
        self._seed, self._renderer, self._format = config.seed, renderer, response_format
        rows = read_prepared(folder)
        train: dict[str, list[PreparedQuestion]] = {name: [] for name in config.sources}
        for row in rows:
            if row.split == "train":
                train[row.source].append(row)
        self._train = [train[name] for name in config.sources]
        self._mix = Mix([len(rows) for rows in self._train], [s.weight for s in config.sources.values()], config.seed)
        held_out = [row for row in rows if row.split == "held_out"]
        self._held_out = sorted(held_out, key=lambda row: _place(config.seed, row.content))
        if not rows:
            raise DataError(f"no row can be used; {folder / QUARANTINE_FILE} has the reasons")
        if not held_out or not any(self._train):
            raise DataError(_lacking(config, rows, "training" if held_out else "evaluation"))

    def question(self, split: Split, index: int) -> Prompt:
        """Return the `index`-th question of `split`; in training, the id of a repeated row has the number of the
        repetition.
        """
        row, again = (self._held_out[index], 0) if split == "held_out" else self._drawn(index)
        return self._renderer.prompt(
            id=f"{row.id}@{again}" if again else row.id,
            kind=row.kind,
            question=row.question,
            answer=row.answer,
            media=row.media,
            evidence=row.evidence,
        )

    def media(self, split: Split, index: int) -> tuple[Media, ...]:
        """Return the pictures and videos of the `index`-th question."""
        return (self._held_out[index] if split == "held_out" else self._drawn(index)[0]).media

    def held_out(self, count: int) -> list[Prompt]:
        """Return the first `count` held-out questions, or all if there are fewer."""
        return [self.question("held_out", i) for i in range(min(count, len(self._held_out)))]

    def demonstration(self, stage: SupervisedStage, split: Split, index: int, *, seed: int = 0) -> Sample:
        """The `index`-th row with its thought (without, for answer_only) and answer; `seed` skips a whole number of
        passes.
        """
        if stage == "perceive":
            raise ValueError("files hold no captions to imitate")
        if split == "train":
            index += self._mix.start(seed)
        row = self._held_out[index] if split == "held_out" else self._drawn(index)[0]
        prompt = self.question(split, index)
        text = demonstration_text(row.thought, row.answer, self._format)
        return Sample(prompt.id, prompt, self._renderer.response(text))

    def _drawn(self, index: int) -> tuple[PreparedQuestion, int]:
        source, position = self._mix.draw(index)
        rows = self._train[source]
        again, at = divmod(position, len(rows))
        return rows[self._order(source, again)[at]], again

    @functools.lru_cache(64)  # noqa: B019 (lives as long as the run)
    def _order(self, source: int, again: int) -> np.ndarray:
        return np.random.default_rng([self._seed, _SOURCES + source, again]).permutation(len(self._train[source]))


def _place(seed: int, content: str) -> bytes:
    """Return the sort key of held-out questions, which adding or removing a row does not change."""
    return hashlib.sha256(f"{seed}/{content}".encode()).digest()


def _lacking(config: FilesConfig, rows: Sequence[PreparedQuestion], purpose: Literal["training", "evaluation"]) -> str:
    """Say why there are no questions for a purpose, and which share would leave some for both."""
    draws = [drawn(config.seed, row.subject) for row in rows if config.sources[row.source].split == "both"]
    none = f"none of {len(rows)} questions for {purpose}"
    if not draws:
        return f"data.sources keeps {none}; set a source's split to both, or add a source"
    for share in _SHARES:
        kept = sum(draw < share for draw in draws)
        if 0 < kept < len(draws):
            return f"data.held_out={config.held_out:g} keeps {none}; set it to {share} to keep {kept} for evaluation"
    return f"data.held_out={config.held_out:g} keeps {none}: too few to split; add rows"


class Mix:
    """Endless draws from sources of `sizes`, `weights` per row. A draw is (source, how many of it came before)."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self._rates = [size * weight for size, weight in zip(sizes, weights, strict=True)]
        self._seed = seed

    def start(self, number: int) -> int:
        """Return the index of the first draw of the `number`-th pass."""
        return sum(math.floor(number * rate) for rate in self._rates)

    def draw(self, index: int) -> tuple[int, int]:
        """Return the `index`-th draw."""
        number = int(index / sum(self._rates))
        while self.start(number) > index:
            number -= 1
        while self.start(number + 1) <= index:
            number += 1
        source, position = self._pass(number)[index - self.start(number)]
        return int(source), int(position)

    @functools.lru_cache(4)  # noqa: B019 (lives as long as the run)
    def _pass(self, number: int) -> np.ndarray:
        """int64 [draws, 2]"""
        draws = [
            (source, position)
            for source, rate in enumerate(self._rates)
            for position in range(math.floor(number * rate), math.floor((number + 1) * rate))
        ]
        return np.random.default_rng([self._seed, _MIX, number]).permutation(np.array(draws))


def demonstration_text(thought: str | None, answer: str, response_format: ResponseFormat) -> str:
    """Format the response that sft imitates."""
    answered = f"<answer>{answer}</answer>"
    return answered if response_format == "answer_only" else f"<think>{thought}</think>\n{answered}"
