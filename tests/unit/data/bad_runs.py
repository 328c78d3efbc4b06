"""One run of the preparation over every kind of row, and the results."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ral_system.config.commands import TrainConfig
from ral_system.config.data import FilesConfig
from ral_system.data.chat import ChatRenderer
from ral_system.data.file_prompts import FilePrompts
from ral_system.data.preparation import PreparedQuestion, read_prepared
from ral_system.models.loading import load_family
from ral_system.observability.jsonl import read_objects
from ral_system.tasks.open import QuestionSettings, prepare_files
from ral_system.types import Prompt
from tests.unit.data.bad_kinds import Row
from tests.unit.data.bad_media import LIST, TABLE, lay_traps
from tests.unit.data.bad_texts import TEXTS

SOURCES = (TEXTS, LIST, TABLE)
LONG_AGO = 10**9
SETTINGS = (
    "data=files",
    "stages=[rl]",
    "reward=video_r1",
    "+reward.kinds={box: box, interval: interval, mathematics: mathematics}",
    "rollout.max_model_len=700",
    "rollout.max_new_tokens=100",
    "data.system_prompt=answer",
    "data.image={min_pixels: null, max_pixels: null}",
    "data.held_out=0.1",
    "data.max_broken=1",
)


@dataclass(frozen=True)
class Outcome:
    """Results for the three files."""

    root: Path
    prepared: Path
    seconds: float
    ids: dict[tuple[str, str], str | None]
    """Ids of rows, by source and kind."""
    good: dict[str, Row]
    used: dict[str, PreparedQuestion]
    left_out: dict[str, dict[str, Any]]
    prompts: dict[str, Prompt]
    instructions: dict[str, str]


def prepare_everything(folder: Path, model: Path, make_config: Callable[..., TrainConfig]) -> Outcome:
    """Write all sources below `folder` and prepare them in one mix."""
    root = folder / "data"
    root.mkdir()
    lay_traps(root)
    ids, good = {}, {}
    for source in SOURCES:
        found, rows = source.write(root)
        ids |= {(source.name, name): id for name, id in found.items()}
        good |= rows
    for secret in folder.glob("secret.*"):
        os.utime(secret, (LONG_AGO, LONG_AGO))
    config = make_config(
        *SETTINGS,
        *(f"+data/source@data.sources.{source.name}={source.columns}" for source in SOURCES),
        *(f"data.sources.{source.name}.path={root / source.file}" for source in SOURCES),
        "data.sources.lines.columns.thought=null",
    )
    config = config.model_copy(update={"stages": ("sft", "rl")})  # so that the other two files' thoughts are read
    data = config.data
    assert isinstance(data, FilesConfig)
    family = load_family(model)
    began = time.monotonic()
    prepared = prepare_files(QuestionSettings.of(config), data, family, folder / "runs")
    seconds = time.monotonic() - began
    prompts = FilePrompts(
        data, prepared, ChatRenderer(family, data.system_prompt), response_format=config.algorithm.response_format
    )
    used = {row.id: row for row in read_prepared(prepared)}
    trained = [prompts.question("train", i) for i in range(sum(row.split == "train" for row in used.values()))]
    return Outcome(
        root,
        prepared,
        seconds,
        ids,
        good,
        used,
        {line["id"]: line for line in read_objects(prepared / "quarantine.jsonl")},
        {prompt.id: prompt for prompt in (*trained, *prompts.held_out(len(used)))},
        data.instructions,
    )
