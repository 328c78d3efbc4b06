"""Words of a tiny model, by the data that it is built for."""

from __future__ import annotations

from ral_system.config.data import AskedDataConfig, AskedLookingConfig, FilesConfig
from ral_system.data.sources.words import words_of_files
from ral_system.tasks import looking, visual_search


def vocabulary(data: AskedDataConfig) -> list[str]:
    """Return the words of `data`: visual search and video search share the same ones, files have those of their rows.

    Raises DataError for a file that cannot be read.
    """
    if isinstance(data, FilesConfig):
        return words_of_files(data)
    return looking.words() if isinstance(data, AskedLookingConfig) else visual_search.words()
