"""The tiny model that a run without one starts from."""

from __future__ import annotations

from pathlib import Path

from ral_system.config.data import AskedDataConfig
from ral_system.config.model import TinyModelConfig
from ral_system.runs.folder import RunFolder
from ral_system.tasks.given_tokenizer import given_tokenizer, is_tokenizer_of
from ral_system.tasks.tiny_model import write_tiny_model
from ral_system.tasks.vocabulary import tiny_tokenizer


def new_tiny_model(tiny: TinyModelConfig, data: AskedDataConfig, seed: int, folder: RunFolder) -> Path:
    """Build the start model of a run that is given none, with a given tokenizer or the words of its data, unless it is
    there already. Raises ConfigError where another tokenizer is given after work with it.
    """
    if tiny.tokenizer is not None and folder.start_model.is_dir():
        given = given_tokenizer(tiny.tokenizer)
        if not is_tokenizer_of(folder.start_model, given):
            folder.drop_start_model(f"model.tiny.tokenizer={tiny.tokenizer}", "the tokenizer")
    if not folder.start_model.is_dir():
        with folder.whole(folder.start_model) as partial:
            write_tiny_model(partial, tiny_tokenizer(tiny, data), seed=seed, **tiny.sizes)
    return folder.start_model
