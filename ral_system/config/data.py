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
    """Conversion of a question to a conversation."""

    system_prompt: str
    """Text of the system turn. If empty, there is none, unless the model's chat template adds its own."""
    think_tags: ThinkTags
    """How `<think>`, `</think>`, `<answer>` and `</answer>` are tokenised. special: as the tokenizer's special tokens
    for them, if it has any. text: always as ordinary text, for models that were not trained on these tokens."""


class BoardsConfig(Group):
    """Generated pictures of boards with coloured things."""

    name: Literal["visual_search"]
    seed: NonNegative
    """Seed of the generated pictures and questions. It is separate from the run's seed, so runs with different seeds
    can share the data."""
    grid: Annotated[tuple[Annotated[int, Field(ge=2, le=8)], ...], Field(min_length=1), OneOrMore]
    """Cells per side of a board, which has grid² visual tokens. With a list such as `[2, 4, 8]` the sizes take turns,
    in each turn one question of each kind."""
    objects: Annotated[int, Field(ge=2)]
    """Number of filled cells: the target and objects - 1 distractors. Smaller boards are filled completely."""
    digits: bool
    """Use real handwritten digits as well as drawn shapes."""

    def problems(self) -> Iterator[str]:
        """Refuse more objects than the largest board has cells."""
        if self.objects > (cells := max(self.grid) ** 2):
            yield f"data.objects={self.objects} does not fit data.grid={list(self.grid)}; at most {cells}"


class AskedBoardsConfig(BoardsConfig, WordsConfig):
    """Questions on generated boards for commands that do not train."""


class ScenesConfig(BoardsConfig):
    """Generated boards and questions for which `ral-synthesize` writes demonstrations."""

    train_records: Annotated[Positive, ResumableSynthesis]
    """Number of training questions, each with its picture. A stage that needs more starts again with the first."""

    @model_validator(mode="before")
    @classmethod
    def _of_visual_search(cls, given: Any) -> Any:
        """Reject other data with the choice to make instead of a list of missing fields."""
        name = given.get("name") if isinstance(given, Mapping) else None
        if isinstance(name, str) and name != "visual_search":
            says = f"name={name}: demonstrations are made for data=visual_search; choose it"
            raise PydanticCustomError("of_field_inside", "{says}", {"says": says})
        return given


class ShownBoardsConfig(ScenesConfig, AskedBoardsConfig):
    """Generated boards with the training and held-out questions of a run."""


class VisualSearchConfig(ShownBoardsConfig):
    """Visual search: generated boards with questions, demonstrations and a system turn."""

    described: Positive
    """Largest number of positions that a demonstration of the perceive stage describes. Large boards have more."""
    small_boards: NonNegative
    """Number of demonstrations at the start of the perceive stage that show boards of 2 × 2 cells."""
    search_from: NonNegative
    """Number of demonstrations at the start of the perceive stage that only describe. Later ones also locate each
    thing."""
    glance_share: Fraction
    """Share of the think-and-answer demonstrations whose thought looks nothing up. Where several cells matter, their
    answer is a guess."""
    demonstrations: str | None
    """Path of a `demonstrations.jsonl` of `ral-synthesize`. sft then imitates these demonstrations in order, and
    `glance_share` is not used. null: generated thoughts."""
    sft_in_words: bool
    """Train sft on text alone, as a control: demonstrations show no picture, and their question describes the board
    position by position. Held-out questions keep their pictures."""

    def problems(self) -> Iterator[str]:
        """Refuse settings that demonstrations from a file do not read, and sft in words with such demonstrations."""
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
    """Questions on generated videos that show a different coloured thing every second: what is shown, and when."""

    FRAMES_PER_S: ClassVar[int] = 4
    """Frames per second of the generated videos; those within a second are identical."""

    name: Literal["video_search"]
    seed: NonNegative
    """Seed of the generated videos and questions, separate from the run's seed."""
    seconds: Annotated[tuple[Annotated[int, Field(ge=2, le=8)], ...], Field(min_length=1), OneOrMore]
    """Length of a video in seconds, which questions call a to h; each second has four frames. With a list the lengths
    take turns, in each turn one question of each kind."""
    max_frames: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1), OneOrMore]
    """Number of evenly spaced frames that the model sees. With fewer than 2 · seconds, some seconds are missed or share
    a patch. With a list the numbers take turns, in each turn all of `seconds`."""


class ShownVideosConfig(AskedVideosConfig):
    """Generated videos with the training and held-out questions of a run."""

    train_records: Positive
    """Number of training questions, each with its video. A stage that needs more starts again with the first."""


class VideoSearchConfig(ShownVideosConfig):
    """Video search: generated videos with questions and demonstrations."""

    described: Positive
    """Largest number of seconds that a demonstration of the perceive stage describes, and of things that it locates."""


class AskedLookingConfig(WordsConfig):
    """Questions on generated pictures and videos that cannot be answered from their text, by family and difficulty."""

    name: Literal["looking"]
    seed: NonNegative
    """Seed of the generated scenes and questions, separate from the run's seed."""
    families: Annotated[tuple[LookingFamily, ...], Field(min_length=1), OneOrMore]
    """Families of questions, which take turns. search: where the only object of its kind and colour is. detail: which
    small digit is on it. count: how many objects are in a rectangle. chain: what is at the end of a chain of arrows.
    misleading: the colour of an object, in a question that suggests one. compare: what a second picture shows in the
    same place. needle: detail, in one second of a video."""
    difficulty: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1), OneOrMore]
    """Difficulty from 1 to 5. It sets the size of boards (4 × 4 to 12 × 12 cells), the length of chains, the number of
    cells to count and the seconds of a video. With a list the difficulties take turns, in each turn one question of
    each family."""


class ShownLookingConfig(AskedLookingConfig):
    """Generated tasks that need looking, with the training and held-out questions of a run."""

    train_records: Positive
    """Number of training questions, each with its scene. A stage that needs more starts again with the first."""


class LookingConfig(ShownLookingConfig):
    """Tasks that need looking: generated questions and demonstrations."""

    described: Positive
    """Largest number of places that a demonstration of the perceive stage describes, and of things that it locates."""
    small_boards: NonNegative
    """Number of demonstrations at the start of the perceive stage that show only the upper left 2 × 2 cells."""
    search_from: NonNegative
    """Number of demonstrations at the start of the perceive stage that only describe. Later ones also locate each
    thing."""
    glance_share: Fraction
    """Share of the think-and-answer demonstrations whose thought looks nothing up. Where several places matter, their
    answer is a guess; in misleading questions it is the colour that the question suggests."""


class ColumnsConfig(Group):
    """Names of a file's columns. Dotted names refer to nested values (`reward_model.ground_truth`, `prompt.0.content`).
    null: the file has no such column. If `images` or `videos` is set, at least one row must have one of them."""

    question: str
    """Column of the question: a text, or a list of chat turns {role, content} with exactly one user turn. A system turn
    is ignored in favour of `data.system_prompt`. `<image>` and `<video>` mark where media belong; without marks they
    come before the text."""
    answer: str
    """Column of the reference answer, with or without `<answer>` tags."""
    thought: str | None
    """Column of the thought that sft imitates before the answer, with or without `<think>` tags."""
    options: str | None
    """Column with a list of texts or numbers that are appended to the question, one per line."""
    images: str | None
    """Column of pictures: a path, bytes, {bytes, path} as Hugging Face datasets store pictures, or a list of these."""
    videos: str | None
    """Column of videos, in the forms of `images`."""
    media_type: str | None
    """Column with the word image or video, if the column named as `images` can hold either. null: if one column is
    named as both `images` and `videos`, the type of each file decides."""
    kind: str | None
    """Column of the question kind, which tables, `data.instructions` and `reward.kinds` refer to."""
    id: str | None
    """Column of an identifier that is copied to `quarantine.jsonl`. Everywhere else rows are named by source and
    number."""
    evidence: str | None
    """Column with the boxes that show the answer: a list of {box: [left, top, right, bottom], unit: fraction or pixel}.
    Pixels are those of the picture before any resizing. Each box may also have `medium`, the index of the medium in the
    question (from 0), and for a video `seconds`: [start, end]."""


class SourceConfig(Group):
    """A file of questions, several files in a folder, or a dataset on the Hugging Face Hub."""

    path: str
    """A .json, .jsonl, .parquet or .arrow file, a folder, or the name of a dataset on the Hub (`org/name`), which is
    downloaded once."""
    files: str | None
    """Pattern of the files to read from a folder or dataset, such as `data/train-*.parquet`. null: the Arrow files of a
    dataset saved to disk."""
    media_files: str | None
    """Pattern of the pictures and videos to download along with `files` from the Hub, such as `images/*`."""
    revision: str | None
    """Branch, tag or commit of a dataset on the Hub. null: the state of `main` when the run starts."""
    root: str | None
    """Folder that paths of media are relative to and must stay inside. null: `path` if it is a folder, otherwise the
    folder of `path`."""
    weight: PositiveFloat
    """How often each row is used, relative to a row of weight 1."""
    split: Literal["both", "train", "held_out"]
    """Use of the rows: train, held_out, or both, where the share `data.held_out`, chosen by content, is held out."""
    columns: ColumnsConfig
    """Names of the columns."""

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, given: Any) -> Any:
        """Reject a path without columns: it is left over from an experiment whose source another `data=` has
        replaced."""
        if isinstance(given, Mapping) and "path" in given and "columns" not in given:
            raise PydanticCustomError("half_a_source", "a path and no columns")
        return given


class ImageConfig(Group):
    """Size of pictures as the model sees them. null: the limit of the model's own processor."""

    min_pixels: Positive | None
    """Smallest number of pixels; smaller pictures are enlarged."""
    max_pixels: Positive | None
    """Largest number of pixels; larger pictures are reduced."""

    def problems(self) -> Iterator[str]:
        """Refuse an empty range of sizes."""
        low, high = self.min_pixels, self.max_pixels
        if low is not None and high is not None and low > high:
            yield f"data.image.min_pixels={low} is above data.image.max_pixels={high}; lower it"


class VideoConfig(Group):
    """Frames of a video that the model sees. The paper: 1 frame per second, at most 128 frames of at most 128·28·28
    pixels."""

    fps: PositiveFloat
    """Frames per second."""
    max_frames: Annotated[int, Field(ge=2)]
    """Largest number of frames; longer videos are sampled at fewer frames per second."""
    min_frames: Positive
    """Smallest number of frames; shorter videos are sampled at more frames per second, if they have them."""
    min_pixels: Positive
    """Smallest number of pixels of a frame; smaller frames are enlarged."""
    max_pixels: Positive
    """Largest number of pixels of a frame; larger frames are reduced."""

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
    """Seed of the order of the rows and of the choice of held-out rows, separate from the run's seed."""
    sources: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], SourceConfig]
    """Sources by names of your choice, by which rows are then called: `main/17`."""
    instructions: dict[str, str]
    """Instruction to append to every question of a kind, by kind. `default` is for all other kinds. Case does not
    matter."""
    held_out: Fraction
    """Share of the rows to hold out, for sources with split=both."""
    image: ImageConfig
    """Size of pictures."""
    video: VideoConfig
    """Frames of videos."""
    max_broken: Fraction
    """Largest share of unusable rows. Preparation ends with an error if it is exceeded after the first hundred rows."""
    workers: Annotated[Positive, Resumable]
    """Number of processes that decode media."""
    timeout_s: Annotated[PositiveFloat, Resumable]
    """Time limit, in seconds, for decoding the media of a row."""


AskedDataConfig = Annotated[
    AskedBoardsConfig | AskedVideosConfig | AskedLookingConfig | FilesConfig, Field(discriminator="name")
]
"""Data of `ral-evaluate`."""
ShownDataConfig = Annotated[
    ShownBoardsConfig | ShownVideosConfig | ShownLookingConfig | FilesConfig, Field(discriminator="name")
]
"""Data of `ral-data`."""
DataConfig = Annotated[
    VisualSearchConfig | VideoSearchConfig | LookingConfig | FilesConfig, Field(discriminator="name")
]
"""Data of a training run."""
