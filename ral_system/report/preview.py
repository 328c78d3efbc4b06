"""Preview of a run's data as its model reads them: the first questions of each split, and rows that were left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from ral_system.config.data import FilesConfig, ShownBoardsConfig, ShownLookingConfig, ShownVideosConfig
from ral_system.config.reward import JudgeConfig
from ral_system.data.chat import ChatRenderer
from ral_system.data.file_prompts import FilePrompts
from ral_system.data.preparation import QUARANTINE_FILE, PreparedQuestion, kind_of_reason, read_prepared
from ral_system.errors import DataError
from ral_system.families.family import Family
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.observability.jsonl import read_objects
from ral_system.report.preview_page import (
    Drawn,
    Figures,
    Judged,
    LeftOut,
    Origin,
    Piece,
    Preview,
    Reason,
    ShownMedium,
    ShownRow,
    Spread,
)
from ral_system.tasks.open import (
    QuestionSettings,
    absent_columns,
    generated_questions,
    prepare_files,
    prepared_folder,
)
from ral_system.types import Media, Prompt, Split

SHOWN_FRAMES = 16
_FRAME_PX = 224
_REASONS = 5
_KINDS = 20
_UNKNOWN_SHARE = 0.2


def preview_data(
    settings: QuestionSettings, origin: Origin, model: Path, runs: Path, scratch: Path, *, rows: int, held_out: int
) -> tuple[Preview, DataError | None]:
    """Show what `model` would read, with `rows` training rows and `held_out` generated questions in all.

    Files are prepared in `runs`, as by a run; generated pictures are stored in `scratch`.

    With it, the error of a preparation with too many broken rows. Without a question to train on or to hold out the
    preview alone says why no run can use the data. Raises DataError where nothing was read.
    """
    family, data, error = load_family(model), settings.data, None
    most: dict[Split, int] = {"train": rows, "held_out": -(-rows // 3)}
    if isinstance(data, FilesConfig):
        preview, error = _of_files(settings, data, family, runs, origin, most)
    else:
        assert isinstance(data, ShownBoardsConfig | ShownVideosConfig | ShownLookingConfig)
        totals: dict[Split, int] = {"train": data.train_records, "held_out": held_out}
        preview = _of_generated(data, settings.renderer(family), scratch, origin, most, totals)
    shown = [*preview.train, *preview.held_out]
    return replace(preview, warnings=_unknown_words(shown, family.tokenizer.unk_token)), error


def _unknown_words(rows: Sequence[ShownRow], unknown: str | None) -> list[str]:
    """Warn about the prompt with the largest share of words that the model does not know."""
    found = []
    for row in rows:
        words = row.tokens - row.visual_tokens
        count = sum(piece.tokens for piece in row.prompt if piece.kind == "special" and piece.text == unknown)
        found.append((count / max(words, 1), count, words, row.id))
    share, count, words, id = max(found, default=(0.0, 0, 0, ""))
    if share <= _UNKNOWN_SHARE:
        return []
    return [
        f"{count} of the {words} text tokens of {id} are {unknown}: the model's tokenizer does not know these words; "
        "change data.system_prompt, data.instructions or the model"
    ]


def _of_generated(
    data: ShownBoardsConfig | ShownVideosConfig | ShownLookingConfig,
    renderer: ChatRenderer,
    scratch: Path,
    origin: Origin,
    most: Mapping[Split, int],
    totals: Mapping[Split, int],
) -> Preview:
    store = MediaStore(scratch)
    questions = generated_questions(data, renderer, store)
    look = _Look(renderer.family, store)
    rows = {
        split: [
            look.row(questions.question(split, i), questions.records.record(split, i).thought)
            for i in range(min(most[split], total))
        ]
        for split, total in totals.items()
    }
    shown = [*rows["train"], *rows["held_out"]]
    figures = Figures(
        rows=sum(totals.values()),
        train=totals["train"],
        held_out=totals["held_out"],
        left_out={},
        reasons=(),
        tokens=_spread([row.tokens for row in shown]),
        visual_tokens=_spread([row.visual_tokens for row in shown]),
        counted="the questions below",
    )
    return Preview(origin, data.name.replace("_", " "), figures, rows["train"], rows["held_out"], left_out=())


def _of_files(
    settings: QuestionSettings,
    data: FilesConfig,
    family: Family,
    runs: Path,
    origin: Origin,
    most: Mapping[Split, int],
) -> tuple[Preview, DataError | None]:
    folder = prepared_folder(settings, data, family, runs)
    look, renderer = _Look(family, MediaStore(folder / "media")), settings.renderer(family)
    prompts, error = None, None
    try:
        prepare_files(settings, data, family, runs)
    except DataError as refusal:
        error = refusal
    kept, left = read_prepared(folder), [LeftOut(**line) for line in read_objects(folder / QUARANTINE_FILE)]
    if error is not None and not kept and not left:
        raise error
    why = str(error) if error else None
    if error is None:
        try:
            prompts = FilePrompts(data, folder, renderer, response_format=settings.response_format)
        except DataError as lack:
            why = str(lack)
    by_id = {row.id: row for row in kept}

    def first(split: Split) -> list[ShownRow]:
        rows = [row for row in kept if row.split == split][: most[split]]
        if prompts is None:
            asked = [_prompt(row, renderer) for row in rows]
        else:
            asked = [prompts.question(split, i) for i in range(len(rows))]
        return [look.row(prompt, by_id[prompt.id.partition("@")[0]].thought) for prompt in asked]

    figures = _figures(settings.reward, data, kept, left, look.family, absent_columns(folder))
    shown = Preview(origin, str(folder), figures, first("train"), first("held_out"), left[: most["train"]], why)
    return shown, error


def _prompt(row: PreparedQuestion, renderer: ChatRenderer) -> Prompt:
    return renderer.prompt(id=row.id, kind=row.kind, question=row.question, answer=row.answer, media=row.media)


def _figures(
    reward: JudgeConfig,
    data: FilesConfig,
    kept: Sequence[PreparedQuestion],
    left: Sequence[LeftOut],
    family: Family,
    absent: Sequence[str],
) -> Figures:
    splits = Counter(row.split for row in kept)
    broken = [row.reason for row in left if row.cause == "broken"]
    examples = {kind_of_reason(reason): reason for reason in reversed(broken)}
    most = Counter(map(kind_of_reason, broken)).most_common(_REASONS)
    return Figures(
        rows=len(kept) + len(left),
        train=splits["train"],
        held_out=splits["held_out"],
        left_out=dict(Counter(row.cause for row in left).most_common()),
        reasons=[Reason(kind, count, examples[kind]) for kind, count in most],
        tokens=_spread([row.tokens for row in kept]),
        visual_tokens=_spread([sum(map(family.tokens, row.media)) for row in kept]),
        counted="all questions in use",
        judged=_judged(reward, kept),
        drawn=_drawn(data, kept) if len(data.sources) > 1 else (),
        absent=absent,
    )


def _judged(reward: JudgeConfig, kept: Sequence[PreparedQuestion]) -> list[Judged]:
    own = {kind.strip().lower() for kind in reward.kinds}
    return [
        Judged(kind, reward.of_kind(kind).verifier, kind in own, count)
        for kind, count in Counter(row.kind for row in kept).most_common(_KINDS)
    ]


def _drawn(data: FilesConfig, kept: Sequence[PreparedQuestion]) -> list[Drawn]:
    rows = Counter(row.source for row in kept)
    train = Counter(row.source for row in kept if row.split == "train")
    drawn = {name: train[name] * source.weight for name, source in data.sources.items()}
    total = sum(drawn.values()) or 1.0
    return [Drawn(name, rows[name], drawn[name] / total) for name in data.sources]


def _spread(counts: Sequence[int]) -> Spread | None:
    if not counts:
        return None
    return Spread(*(int(np.percentile(counts, share, method="higher")) for share in (50, 95, 100)))


class _Look:
    """Prompts as one processor's model reads them, with their media."""

    def __init__(self, family: Family, store: MediaStore) -> None:
        self.family, self._store, self._tokenizer = family, store, family.tokenizer

    def row(self, prompt: Prompt, thought: str | None) -> ShownRow:
        pieces, media = list(self._pieces(prompt.token_ids)), [self._medium(medium) for medium in prompt.media]
        return ShownRow(prompt.id, prompt.kind, pieces, media, prompt.answer, thought)

    def _pieces(self, token_ids: Sequence[int]) -> Iterable[Piece]:
        for token, run in groupby(token_ids, lambda token: token if token in self.family.special else None):
            ids = list(run)
            if token is None:
                yield Piece("text", self._decoded(ids), len(ids))
            elif token in self.family.visual_ids.values():
                yield Piece("media", self._decoded([token]), len(ids))
            else:
                yield from [Piece("special", self._decoded([token]), 1)] * len(ids)

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _medium(self, medium: Media) -> ShownMedium:
        size, layout, frames = (
            (medium.width_px, medium.height_px),
            self.family.layout(medium),
            self._store.frames(medium),
        )
        if medium.clip is None:
            return ShownMedium("image", size, layout, [Image.fromarray(frames[0])])
        at = np.linspace(0, len(frames) - 1, min(len(frames), SHOWN_FRAMES)).round().astype(int).tolist()
        pictures = [Image.fromarray(frames[i]) for i in at]
        for frame in pictures:
            frame.thumbnail((_FRAME_PX, _FRAME_PX))
        times = [medium.clip.times_s[i] for i in at]
        return ShownMedium("video", size, layout, pictures, times, len(frames), medium.clip.duration_s)
