"""Words of a tiny model, by the world that it is built for."""

from __future__ import annotations

from ral_system.config.data import AskedDataConfig, AskedLookingConfig
from ral_system.tasks import looking, visual_search


def vocabulary(data: AskedDataConfig) -> list[str]:
    """Return the words of `data`; visual search, video search and files share the same ones."""
    return looking.words() if isinstance(data, AskedLookingConfig) else visual_search.words()
