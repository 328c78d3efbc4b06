"""What a stage starts from where nothing is given: a tiny model that knows the words of its data."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ral_system.config.commands import TrainConfig
from ral_system.controller.start import first_model
from ral_system.errors import SetupError
from ral_system.runs.folder import RunFolder


def test_sft_on_files_starts_from_a_tiny_model_that_knows_their_words(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    row = {"question": "Welche Farbe hat die Kuh?", "answer": "gescheckt"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    columns = [f"data.sources.mine.columns.{name}={name}" for name in ("question", "answer")]
    source = ("+data/source@data.sources.mine=columns", f"data.sources.mine.path={tmp_path}/rows.jsonl", *columns)
    config = make_config("data=files", *source, "algorithm=grpo_zero", "stages=[sft,rl]", "data.system_prompt=antworte")
    folder = RunFolder(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(first_model(config, folder, "sft", config.stages))
    words = "antworte Welche Farbe hat die Kuh ? <answer> gescheckt </answer>"
    assert tokenizer.convert_ids_to_tokens(tokenizer(words)["input_ids"]) == words.split()
    assert len(tokenizer) < 60, "no words of generated pictures"


def test_sft_on_generated_pictures_needs_a_model_that_sees(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config("stages=[sft]")
    with pytest.raises(SetupError, match=r"sft has no model to start from in .*: run ral-perceive first"):
        first_model(config, RunFolder(tmp_path), "sft", config.stages)
