"""Opening of a run's data: generated on request, or files, prepared once for all runs in the same folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ral_system.config.algorithm import AlgorithmConfig
from ral_system.config.choices import ResponseFormat
from ral_system.config.commands import QuestionsConfig
from ral_system.config.data import (
    AskedBoardsConfig,
    AskedDataConfig,
    AskedLookingConfig,
    AskedVideosConfig,
    DataConfig,
    FilesConfig,
    LookingConfig,
    VideoSearchConfig,
    VisualSearchConfig,
)
from ral_system.config.reward import JudgeConfig
from ral_system.data.chat import ChatRenderer
from ral_system.data.file_prompts import FilePrompts, demonstration_text
from ral_system.data.preparation import QUARANTINE_FILE, RULES, Preparation, Tally
from ral_system.data.prompts import Prompts, Questions
from ral_system.data.sources.hub import source_files
from ral_system.errors import DataError, SetupError
from ral_system.families.family import Family, PixelBudget
from ral_system.media.prefetch import MediaPrefetcher
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.observability.jsonl import write_atomically
from ral_system.observability.progress import StageProgress
from ral_system.rewards.pool import RewardPool
from ral_system.runs.folder import RunFolder
from ral_system.tasks.looking_prompts import LookingPrompts, LookingQuestions
from ral_system.tasks.video_search_prompts import VideoSearchPrompts, VideoSearchQuestions
from ral_system.tasks.visual_search_prompts import VisualSearchPrompts, VisualSearchQuestions
from ral_system.types import MediaKind, Prompt

PREPARED_FOLDER = ".prepared"
"""Beside the runs; one folder for each set of files and settings that decide which rows are used, and `media`: copies,
and what is known of media, for all of them."""
_DONE_FILE = "prepared.json"


@dataclass(frozen=True, slots=True)
class QuestionSettings:
    """What decides which questions are asked, and how they are worded and judged."""

    data: AskedDataConfig
    response_format: ResponseFormat
    reward: JudgeConfig
    """Judges the files' own answers while they are prepared; a row whose answer is judged wrong is left out."""
    max_prompt_tokens: int
    imitated: bool
    """Whether sft imitates the files' thoughts, which must then fit the model as well."""
    engine_expands: bool
    """Whether the rollout engine expands media by itself, and must make the same tokens."""

    @classmethod
    def of(cls, config: QuestionsConfig) -> Self:
        """The settings of a command."""
        return cls(
            config.data,
            config.algorithm.response_format,
            JudgeConfig.model_validate(config.reward.model_dump(include=set(JudgeConfig.model_fields))),
            config.rollout.max_model_len - config.rollout.max_new_tokens,
            "sft" in config.stages,
            config.rollout.engine == "vllm",
        )

    def renderer(self, family: Family) -> ChatRenderer:
        """Return what turns these questions into a model's tokens. Raises ConfigError where the two do not fit."""
        return ChatRenderer(
            family,
            self.data.system_prompt,
            response_format=self.response_format,
            think_tags=self.data.think_tags,
            engine_expands=self.engine_expands,
        )


def open_prompts(settings: QuestionSettings, model: Path, folder: RunFolder) -> Prompts:
    """The questions and demonstrations of a run as `model` sees them; files are prepared first, and linked into the
    run's folder.

    Raises DataError where too many rows cannot be used, ConfigError where files changed under a run.
    """
    data, response_format, family = settings.data, settings.response_format, load_family(model)
    renderer = settings.renderer(family)
    if isinstance(data, FilesConfig):
        return _open_files(settings, data, family, renderer, folder)
    if isinstance(data, VideoSearchConfig):
        return VideoSearchPrompts(data, renderer, MediaStore(folder.media), response_format=response_format)
    if isinstance(data, LookingConfig):
        return LookingPrompts(data, renderer, MediaStore(folder.media), response_format=response_format)
    assert isinstance(data, VisualSearchConfig), "only a run's own data have demonstrations"
    return VisualSearchPrompts(data, renderer, MediaStore(folder.media), format=response_format)


def open_questions(settings: QuestionSettings, model: Path, folder: RunFolder) -> Questions:
    """Return the questions alone. Raises the same errors as `open_prompts`."""
    data, family = settings.data, load_family(model)
    renderer = settings.renderer(family)
    if isinstance(data, FilesConfig):
        return _open_files(settings, data, family, renderer, folder)
    return generated_questions(data, renderer, MediaStore(folder.media))


def generated_questions(
    data: AskedBoardsConfig | AskedVideosConfig | AskedLookingConfig, renderer: ChatRenderer, media: MediaStore
) -> VisualSearchQuestions | VideoSearchQuestions | LookingQuestions:
    """Questions on pictures or videos that are made on request, and stored in `media`."""
    if isinstance(data, AskedVideosConfig):
        return VideoSearchQuestions(data, renderer, media)
    if isinstance(data, AskedLookingConfig):
        return LookingQuestions(data, renderer, media)
    return VisualSearchQuestions(data, renderer, media)


def _open_files(
    settings: QuestionSettings, data: FilesConfig, family: Family, renderer: ChatRenderer, folder: RunFolder
) -> FilePrompts:
    prepared = prepare_files(settings, data, family, folder.root.parent)
    folder.use_data(prepared)
    return FilePrompts(data, prepared, renderer, response_format=settings.response_format)


@contextmanager
def media_ahead(data: DataConfig, folder: RunFolder, cache_gib: float) -> Iterator[MediaPrefetcher | None]:
    """Start processes that decode the media of files ahead; generated media are made on request."""
    if not isinstance(data, FilesConfig):
        yield None
        return
    with MediaPrefetcher(folder.media, cache_gib, workers=data.workers, timeout_s=data.timeout_s) as ahead:
        yield ahead


def train_prompts(
    algorithm: AlgorithmConfig, prompts: Prompts, ahead: MediaPrefetcher | None
) -> Callable[[int], Prompt]:
    """Return the training sequence for a loop; while a batch is trained on, the next one's media are decoded."""
    if ahead is None or not isinstance(prompts, FilePrompts):
        return lambda index: prompts.question("train", index)
    depth = (2 + algorithm.max_staleness) * algorithm.prompts_per_step

    def prompt(index: int) -> Prompt:
        for i in range(index, index + depth):
            ahead.want(prompts.media("train", i))
        ahead.wait(prompts.media("train", index))
        return prompts.question("train", index)

    return prompt


def prepare_files(settings: QuestionSettings, data: FilesConfig, family: Family, runs: Path) -> Path:
    """Return the folder of the prepared files. Prepares them if necessary, and continues an interrupted preparation."""
    budgets = family.pixel_budgets(data)
    folder = prepared_folder(settings, data, family, runs)
    with _alone_in(folder):
        if (folder / _DONE_FILE).is_file():
            _say_again(json.loads((folder / _DONE_FILE).read_text(encoding="utf-8")), folder)
        else:
            tally = _prepare(settings, data, family, budgets, folder)
            write_atomically(folder / _DONE_FILE, json.dumps(tally.summary(), indent=2))
            _say(tally, folder)
    return folder


def _prepare(
    settings: QuestionSettings,
    data: FilesConfig,
    family: Family,
    budgets: Mapping[MediaKind, PixelBudget],
    folder: Path,
) -> Tally:
    response_format = settings.response_format
    with RewardPool(settings.reward, response_format) as judge:
        preparation = Preparation(
            data,
            folder,
            MediaStore(folder / "media", shared=folder.parent / "media"),
            renderer=settings.renderer(family),
            budgets=budgets,
            max_tokens=settings.max_prompt_tokens,
            judge=judge,
            thought_text=(lambda thought, answer: demonstration_text(thought, answer, response_format))
            if settings.imitated
            else None,
        )
        with StageProgress("data", preparation.total()) as progress:
            preparation.run(lambda tally: progress.update(tally.settled, {"data/left_out": tally.left_out.total()}))
    tally = preparation.tally
    if tally.settled != tally.rows:
        raise DataError(
            f"only {tally.settled} of {tally.rows} rows are accounted for; if a file changed meanwhile, start again"
        )
    return tally


def prepared_folder(settings: QuestionSettings, data: FilesConfig, family: Family, runs: Path) -> Path:
    """Return a folder named after everything that decides what is asked and what is left out."""
    files = {}
    for name, source in data.sources.items():
        found = source_files(name, source)
        files[name] = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in found]
    decisive = {
        "rules": RULES,
        "data": data.model_dump(mode="json", exclude={"max_broken", "workers"}),
        "files": files,
        "room": settings.max_prompt_tokens,
        "function": _source_of(settings.reward.function),
        "expands": settings.engine_expands and family.joins_text,
        "imitated": settings.response_format if settings.imitated else None,
        "reward": settings.reward.model_dump(mode="json", include={"verifier", "kinds", "function", "tolerance"}),
        "tokenizer": family.tokenizer.backend_tokenizer.to_str(),
        "template": family.processor.chat_template or family.tokenizer.chat_template,
        "budgets": {kind: asdict(budget) for kind, budget in family.pixel_budgets(data).items()},
    }
    return runs / PREPARED_FOLDER / hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def absent_columns(folder: Path) -> list[str]:
    """Return configured columns that no row of prepared files has; none if the preparation was not completed."""
    done = folder / _DONE_FILE
    return list(json.loads(done.read_text(encoding="utf-8"))["absent"]) if done.is_file() else []


def _source_of(function: str | None) -> str | None:
    """Return the digest of the file with the user's verifier, if it can be found from here."""
    if function is None:
        return None
    module = function.partition(":")[0].replace(".", "/")
    for folder in (*sys.path, str(Path.cwd())):  # searched like in the reward pool's processes
        for file in (Path(folder) / f"{module}.py", Path(folder) / module / "__init__.py"):
            if file.is_file():
                return hashlib.sha256(file.read_bytes()).hexdigest()
    return None


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(
                f"another run is preparing the same files in {folder}; start again when it has finished"
            ) from None
        yield


def _say(tally: Tally, folder: Path) -> None:
    used = ", ".join(f"{count} {split.replace('_', '-')}" for split, count in sorted(tally.used.items(), reverse=True))
    left = ", ".join(f"{count} {cause.replace('_', ' ')}" for cause, count in tally.left_out.most_common())
    why = f"; left out {left}: {folder / QUARANTINE_FILE}" if left else ""
    print(f"data: {tally.rows} rows: {used}{why}", file=sys.stderr)


def _say_again(summary: Mapping[str, Any], folder: Path) -> None:
    """Say which rows stay left out: a changed file of rows is noticed, a repaired picture is not."""
    if broken := summary["left_out"].get("broken"):
        print(
            f"data: already prepared; {broken} broken rows are left out: {folder / QUARANTINE_FILE}. "
            f"To use them, repair their media and delete {folder}",
            file=sys.stderr,
        )
