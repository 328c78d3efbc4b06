"""Words and tokenizer of a tiny model, by the data that it is built for."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from ral_system.config.data import AskedDataConfig, AskedLookingConfig, FilesConfig
from ral_system.config.model import TinyModelConfig
from ral_system.data.sources.words import words_of_files
from ral_system.tasks import looking, visual_search
from ral_system.tasks.given_tokenizer import given_tokenizer
from ral_system.tasks.tiny_model import build_tokenizer


def vocabulary(data: AskedDataConfig) -> list[str]:
    """Return the words of `data`: visual search and video search share the same ones, files have those of their rows.

    Raises DataError for a file that cannot be read.
    """
    if isinstance(data, FilesConfig):
        return words_of_files(data)
    return looking.words() if isinstance(data, AskedLookingConfig) else visual_search.words()


def tiny_tokenizer(tiny: TinyModelConfig, data: AskedDataConfig) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a tiny model: the given one, or one of the words of `data`.

    Raises SetupError for one that cannot be used, DataError for a file that cannot be read.
    """
    return build_tokenizer(vocabulary(data)) if tiny.tokenizer is None else given_tokenizer(tiny.tokenizer)
