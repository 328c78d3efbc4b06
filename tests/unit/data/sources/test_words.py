"""Words of files: what a tiny model's tokenizer must know, split as it splits them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.config.data import FilesConfig
from ral_system.data.sources import words as words_module
from ral_system.data.sources.words import split_words, words_of_files
from ral_system.errors import DataError
from ral_system.tasks.tiny_model import build_tokenizer


def files(make_config: Callable[..., TrainConfig], path: Path, *overrides: str) -> FilesConfig:
    """The data of a run on `path`, whose rows have a question q, an answer a and a thought t."""
    source = "+data/source@data.sources.one=columns"
    columns = ("question=q", "answer=a", "thought=t")
    given = (f"data.sources.one.columns.{column}" for column in columns)
    config = make_config("data=files", source, f"data.sources.one.path={path}", *given, "stages=[sft]", *overrides)
    assert isinstance(config.data, FilesConfig)
    return config.data


def test_words_come_from_all_that_models_read_and_write_the_most_frequent_first(
    make_config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"q": "Is it red?", "a": "yes", "t": "red , red"},
        {"q": "Où est-il?", "a": "là-bas", "t": "red"},
        {"q": 7, "a": None, "t": "never"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "no row\n")
    given = "data.system_prompt=look", "data.instructions.OCR='in a word'"
    data = files(make_config, tmp_path / "rows.jsonl", *given)
    found = words_of_files(data)
    assert found[0] == "red"
    expected = "red look in a word Is it ? yes , Où est - il là bas"
    assert set(found) >= set(expected.split())
    assert "never" not in found
    monkeypatch.setattr(words_module, "MOST_WORDS", 3)
    assert words_of_files(data) == found[:3]
    with pytest.raises(DataError, match="no such file"):
        words_of_files(files(make_config, tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize(
    "text",
    [
        "what is 3.5 % of it ?",
        "<think>a-b</think><answer> don't </answer>",
        "naïve  ünïcode_x 漢字 x2",
        "a\n\tb",
        "<b",
        "",
    ],
)
def test_a_tokenizer_of_these_words_knows_them_all(text: str) -> None:
    tokenizer = build_tokenizer(split_words(text))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.convert_ids_to_tokens(ids) == split_words(text)
