"""The `data` group: generated worlds, or questions from files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from ral_system.config.base import (
    Fraction,
    Group,
    NonNegative,
    OneOrMore,
    Positive,
    PositiveFloat,
    Resumable,
    ResumableSynthesis,
)
from ral_system.config.choices import LookingFamily, ThinkTags
from ral_system.config.inert import without_effect


class WordsConfig(Group):
    """How a question becomes a conversation."""

    system_prompt: str
    """Empty: no system turn, unless the model's chat template adds its own."""
    think_tags: ThinkTags
    """How <think>, </think>, <answer> and </answer> reach the model. special: by the tokenizer's own tokens for them,
    if it has any. text: as other text, also then; for models that were not trained on these tokens."""


class BoardsConfig(Group):
    """Generated mosaics: pictures of boards with coloured things."""

    name: Literal["visual_search"]
    seed: NonNegative
    """Seed of the generated pictures and questions; apart from the run's seed, so runs can share the data."""
    grid: Annotated[tuple[Annotated[int, Field(ge=2, le=8)], ...], Field(min_length=1), OneOrMore]
    """Cells per side; grid² visual tokens. Of `[2, 4, 8]` records take turns: one of each question kind, then the next
    size."""
    objects: Annotated[int, Field(ge=2)]
    """Filled cells: the target and objects - 1 distractors; all cells of a board with fewer."""
    digits: bool
    """Mix real handwritten digits with the drawn shapes."""

    def problems(self) -> Iterator[str]:
        """Refuse more objects than the largest board has cells."""
        if self.objects > (cells := max(self.grid) ** 2):
            yield f"data.objects={self.objects} does not fit data.grid={list(self.grid)}; at most {cells}"


class AskedBoardsConfig(BoardsConfig, WordsConfig):
    """Questions on generated mosaics, asked and not trained on."""


class ScenesConfig(BoardsConfig):
    """Generated mosaics and questions: what `ral-synthesize` makes demonstrations for."""

    train_records: Annotated[Positive, ResumableSynthesis]
    """Training pictures and questions; every stage goes through them again when they run out."""

    @model_validator(mode="before")
    @classmethod
    def _of_visual_search(cls, given: Any) -> Any:
        """For other data, say what to choose, not which fields are missing."""
        name = given.get("name") if isinstance(given, Mapping) else None
        if isinstance(name, str) and name != "visual_search":
            says = f"name={name}: demonstrations are made for data=visual_search; choose it"
            raise PydanticCustomError("of_field_inside", "{says}", {"says": says})
        return given


class ShownBoardsConfig(ScenesConfig, AskedBoardsConfig):
    """Generated mosaics with the questions that a run would train on and hold out."""


class VisualSearchConfig(ShownBoardsConfig):
    """Visual search: generated mosaics with questions, demonstrations and a system turn."""

    described: Positive
    """Most positions that a demonstration of the perceive stage describes; large boards have more."""
    small_boards: NonNegative
    """Number of demonstrations at the start of the perceive stage that are on boards of 2 × 2 cells; 0: none."""
    search_from: NonNegative
    """Demonstrations of the perceive stage that describe only; the later ones also say where each thing stands."""
    glance_share: Fraction
    """Share of the think-and-answer demonstrations that look nothing up, and guess if several cells matter."""
    demonstrations: str | None
    """demonstrations.jsonl of `ral-synthesize`, which sft then imitates, in turn, whatever `glance_share`; null: the
    generated thoughts."""
    sft_in_words: bool
    """Demonstrations of sft describe the board in the question, place by place, and show no picture: a cold start on
    text alone, as a control. Held-out questions keep their pictures."""

    def problems(self) -> Iterator[str]:
        """Refuse what the demonstrations of a file leave unread, and words in place of their pictures."""
        yield from super().problems()
        if self.demonstrations:
            reason, remedy = f"data.demonstrations={self.demonstrations}", "set demonstrations to null"
            yield from without_effect(self, "data", reason, remedy, "glance_share")
        if self.sft_in_words and self.demonstrations:
            yield (
                f"data.sft_in_words=true has no effect on data.demonstrations={self.demonstrations}, which are of "
                "pictures; set one to its default"
            )


class AskedVideosConfig(WordsConfig):
    """Questions on generated videos that show another coloured thing every second: when, and what."""

    FRAMES_PER_S: ClassVar[int] = 4
    """All alike within a second."""

    name: Literal["video_search"]
    seed: NonNegative
    seconds: Annotated[tuple[Annotated[int, Field(ge=2, le=8)], ...], Field(min_length=1), OneOrMore]
    """Length of a video in seconds of four frames, called a to h. Several take turns: one of each question kind, then
    the next length."""
    max_frames: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1), OneOrMore]
    """Frames that a model sees, evenly spaced; below 2 · seconds some seconds are missed, or share a patch. Several
    take turns: all of `seconds` with one, then with the next."""


class ShownVideosConfig(AskedVideosConfig):
    """Generated videos with the questions that a run would train on and hold out."""

    train_records: Positive
    """Training videos and questions; every stage goes through them again when they run out."""


class VideoSearchConfig(ShownVideosConfig):
    """Video search: generated videos with questions and demonstrations."""

    described: Positive
    """Seconds that a demonstration of the perceive stage describes at most, and things that it looks for."""


class AskedLookingConfig(WordsConfig):
    """Questions on generated pictures and videos whose text does not give the answer, in families and difficulties."""

    name: Literal["looking"]
    seed: NonNegative
    families: Annotated[tuple[LookingFamily, ...], Field(min_length=1), OneOrMore]
    """Families of questions, which take turns. search: where the only object of its kind and colour is; detail: which
    small digit is on it; count: how many objects are in a rectangle; chain: what is at the end of arrows; misleading:
    the object's colour, after the question suggests one; compare: what a second picture has in its place; needle:
    detail, in one second of a video."""
    difficulty: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1), OneOrMore]
    """Size of boards, from 4 × 4 to 12 × 12 cells, length of chains, cells that are counted, seconds of videos. Several
    take turns: one question of each family, then the next difficulty."""


class ShownLookingConfig(AskedLookingConfig):
    """Generated tasks that need looking with the questions that a run would train on and hold out."""

    train_records: Positive
    """Training scenes and questions; every stage goes through them again when they run out."""


class LookingConfig(ShownLookingConfig):
    """Tasks that need looking: generated questions and demonstrations."""

    described: Positive
    """Places that a demonstration of the perceive stage describes at most, and things that it looks for."""
    small_boards: NonNegative
    """Number of demonstrations at the start of the perceive stage that show the upper left 2 × 2 cells; 0: none."""
    search_from: NonNegative
    """Demonstrations of the perceive stage that describe only; the later ones also say where each thing stands."""
    glance_share: Fraction
    """Share of the think-and-answer demonstrations that look nothing up: they guess if several places matter, and
    believe the suggestion of a misleading question."""


class ColumnsConfig(Group):
    """Names of a file's columns; dotted names reach into nested ones (`reward_model.ground_truth`,
    `prompt.0.content`). null: there is none. One of `images` and `videos`, if any is named, must be in some row."""

    question: str
    """Text, or chat turns of {role, content}: the only user turn is the question, and a system turn is ignored; set
    `data.system_prompt`. <image> and <video> mark the places of media; without such marks they come before the
    text."""
    answer: str
    """With or without <answer> tags around it."""
    thought: str | None
    """What sft imitates before the answer, with or without <think> tags around it."""
    options: str | None
    """A list of texts or numbers that follow the question, one per line."""
    images: str | None
    """A path, bytes, {bytes, path} as Hugging Face's datasets store pictures, or a list of these."""
    videos: str | None
    """Like `images`, for videos."""
    media_type: str | None
    """Column that says image or video, if the one given as `images` holds either. null: if that column is also given as
    `videos`, each file says it itself."""
    kind: str | None
    """Question kind, for tables, `data.instructions` and `reward.kinds`."""
    id: str | None
    """Only repeated in quarantine.jsonl; rows are named by source and number."""
    evidence: str | None
    """Where the answer is to be seen: a list of {box: [left, top, right, bottom], unit: fraction or pixel}; pixel is of
    the picture as shown, before any resizing. Optional in each: `medium`, which of the row's media, in the order of the
    question, from 0 on; and of a video `seconds`: [start, end]."""


class SourceConfig(Group):
    """One file of questions, several in a folder, or a dataset of the Hugging Face hub."""

    path: str
    """A .json, .jsonl, .parquet or .arrow file, a folder, or `org/name` on the hub, which is downloaded once."""
    files: str | None
    """Which files of a folder or dataset: `data/train-*.parquet`; null: the Arrow files of a dataset saved to disk."""
    media_files: str | None
    """Which files of a dataset on the hub are its pictures and videos, fetched with `files`: `images/*`."""
    revision: str | None
    """Branch, tag or commit of a dataset on the hub; null: main, as it is when a run starts."""
    root: str | None
    """Folder that paths of media start from and may not leave; null: that of `path`, or `path` if it is one."""
    weight: PositiveFloat
    """How often each row is seen while a row of weight 1 is seen once."""
    split: Literal["both", "train", "held_out"]
    """What its rows are for; both: `data.held_out` of them, chosen by content, are held out."""
    columns: ColumnsConfig

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, given: Any) -> Any:
        """An experiment's path outlives the columns of the source that it belongs to, with another data=."""
        if isinstance(given, Mapping) and "path" in given and "columns" not in given:
            raise PydanticCustomError("half_a_source", "a path and no columns")
        return given


class ImageConfig(Group):
    """Pixels of a picture as models see it; smaller ones are enlarged, larger ones reduced. null: what the model's own
    processor allows."""

    min_pixels: Positive | None
    max_pixels: Positive | None

    def problems(self) -> Iterator[str]:
        """Refuse an empty range of sizes."""
        low, high = self.min_pixels, self.max_pixels
        if low is not None and high is not None and low > high:
            yield f"data.image.min_pixels={low} is above data.image.max_pixels={high}; lower it"


class VideoConfig(Group):
    """What of a video models see. The paper: 1 frame a second, at most 128, of at most 128·28·28 pixels."""

    fps: PositiveFloat
    """Frames a second."""
    max_frames: Annotated[int, Field(ge=2)]
    """Most frames of a video; a longer one gives fewer frames a second."""
    min_frames: Positive
    """Fewest frames of a video; a shorter one gives more a second, as far as it has them."""
    min_pixels: Positive
    """Fewest pixels of a frame; smaller ones are enlarged."""
    max_pixels: Positive

    def problems(self) -> Iterator[str]:
        """Refuse empty ranges of sizes and of frame counts."""
        if self.min_pixels > self.max_pixels:
            yield (
                f"data.video.min_pixels={self.min_pixels} is above data.video.max_pixels={self.max_pixels}; lower it"
            )
        if self.min_frames > self.max_frames:
            yield (
                f"data.video.min_frames={self.min_frames} is above data.video.max_frames={self.max_frames}; lower it"
            )


class FilesConfig(WordsConfig):
    """Questions from files, with pictures and videos."""

    name: Literal["files"]
    seed: NonNegative
    """Seed of the order of the rows and of what is held out; apart from the run's seed."""
    sources: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], SourceConfig]
    """By names of your choice, which rows are then called by: main/17."""
    instructions: dict[str, str]
    """Line to add to every question of a kind; `default` is for all other kinds. Case does not matter."""
    held_out: Fraction
    """Share of the rows of sources with split=both."""
    image: ImageConfig
    video: VideoConfig
    max_broken: Fraction
    """End the preparation when more than this share of the rows cannot be used, from the hundredth row on."""
    workers: Annotated[Positive, Resumable]
    """Processes that decode."""
    timeout_s: Annotated[PositiveFloat, Resumable]
    """Deadline for decoding one row's media."""


AskedDataConfig = Annotated[
    AskedBoardsConfig | AskedVideosConfig | AskedLookingConfig | FilesConfig, Field(discriminator="name")
]
"""What `ral-evaluate` asks."""
ShownDataConfig = Annotated[
    ShownBoardsConfig | ShownVideosConfig | ShownLookingConfig | FilesConfig, Field(discriminator="name")
]
"""What `ral-data` shows."""
DataConfig = Annotated[
    VisualSearchConfig | VideoSearchConfig | LookingConfig | FilesConfig, Field(discriminator="name")
]
"""What a run trains on."""
