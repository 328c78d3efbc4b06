"""The questions that `ral_system` will train on, written out for the other side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ral_system.config.commands import TrainConfig


@dataclass(frozen=True, slots=True)
class Exported:
    """Questions as the other side reads them: `file` is JSON lines, with pictures beside it."""

    file: Path
    prompt_tokens: float
    """Mean over the prompts as `ral_system` reads them, visual tokens included."""
    visual_tokens: float
    markers: float
    """Tokens that a prompt has more for the other side: two more around every further picture of a video."""
    banned_ids: tuple[int, ...]
    """Tokens that `ral_system` never samples."""


def compose(overrides: Sequence[str]) -> TrainConfig:
    """Return the configuration that `ral-train` composes from overrides."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from omegaconf import OmegaConf

    from ral_system.config.known import read_by
    from ral_system.config.validate import parse_config

    with initialize_config_module("ral_system.conf", version_base=None):
        container: Any = OmegaConf.to_container(hydra_compose("config", list(overrides)), resolve=True)
    container.pop("experiment", None)
    config = parse_config(read_by(TrainConfig, container), TrainConfig)
    assert isinstance(config, TrainConfig)
    return config


def export(config: TrainConfig, model: Path, folder: Path, count: int) -> Exported:
    """Write the first `count` training questions. A video becomes one picture for each pair of its frames, which is
    what the vision encoder merges into one view."""
    import torch

    from ral_system.media.store import MediaStore
    from ral_system.models.loading import load_family
    from ral_system.runs.folder import RunFolder
    from ral_system.tasks.open import QuestionSettings, open_prompts

    folder.mkdir(parents=True, exist_ok=True)
    family, run = load_family(model), RunFolder(folder / "run")
    prompts, store = open_prompts(QuestionSettings.of(config), model, run), MediaStore(run.media)
    rows, lengths, visual, markers = [], 0, 0, 0
    for i in range(count):
        prompt = prompts.question("train", i)
        names: list[str] = []
        for medium in prompt.media:
            for frame in store.frames(medium)[:: family.frames_per_view if medium.clip else 1]:
                names.append(f"{i}_{len(names)}.png")
                Image.fromarray(frame).save(folder / names[-1])
        rows.append({"system": config.data.system_prompt, "question": prompt.question, "images": names})
        lengths += len(prompt.token_ids)
        markers += 2 * (len(names) - len(prompt.media))
        visual += int(family.visual(torch.tensor(prompt.token_ids)).sum())
    file = folder / "questions.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return Exported(file, lengths / count, visual / count, markers / count, family.banned_ids)
