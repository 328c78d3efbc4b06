"""What a stage starts from where nothing is given: a tiny model that knows the words of its data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ral_system.config.commands import TrainConfig
from ral_system.controller.start import first_model
from ral_system.errors import ConfigError, SetupError
from ral_system.runs.folder import RunFolder
from ral_system.tasks.tiny_model import build_tokenizer


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


def test_a_given_tokenizer_binds_a_run_that_has_begun_by_what_is_in_its_folder(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    given, folder = tmp_path / "given", RunFolder(tmp_path / "run")
    config = make_config("experiment=smoke", f"model.tiny.tokenizer={given}")

    def words(*names: str, template: str | None = None) -> None:
        tokenizer = build_tokenizer(names)
        tokenizer.chat_template = template or tokenizer.chat_template
        shutil.rmtree(given, ignore_errors=True)
        tokenizer.save_pretrained(given)

    def start() -> tuple[int, bytes]:
        """Size of the start model's vocabulary, and its weights."""
        model = first_model(config, folder, "perceive", config.stages)
        return len(AutoTokenizer.from_pretrained(model)), (model / "model.safetensors").read_bytes()

    words("a", "b")
    folder.open(config)
    size, weights = start()
    words("a", "b", "c")
    assert start()[0] == size + 1, "nothing was trained yet"
    words("a", "b")
    assert start() == (size, weights), "seeded"
    (folder.root / "metrics.jsonl").write_text("a line\n")
    assert start() == (size, weights)
    says = (
        rf"model.tiny.tokenizer={given}: the tokenizer there is not the one that {folder.root} was made with; set "
        "another name, or restore the tokenizer"
    )
    with pytest.raises(ConfigError, match=says):
        words("a", "c")
        start()
    with pytest.raises(ConfigError, match=says):
        words("a", "b", template="{# another #}" + build_tokenizer([]).chat_template)
        start()
    words("a", "b")
    assert start() == (size, weights)
    shutil.rmtree(given)
    with pytest.raises(SetupError, match=rf"model.tiny.tokenizer={given}: no such folder"):
        start()
    folder.complete("perceive", {"steps": 1}, lambda path: None)
    assert first_model(config, folder, "sft", config.stages) == folder.model("perceive"), "which has its own copy"
