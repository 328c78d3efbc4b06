"""Conversion of media to the inputs of a model's vision encoder."""

from __future__ import annotations

from collections.abc import Sequence

from ral_system.families.family import Family, Features, joined
from ral_system.media.store import MediaStore
from ral_system.types import Media


class FeatureExtractor:
    """Vision preprocessing of a family, applied to media of a store."""

    def __init__(self, family: Family, store: MediaStore) -> None:
        self._family, self._store = family, store

    def __call__(self, media: Sequence[Media]) -> Features:
        """Features of `media` in order; a medium that occurs again is processed once. Raises DataError."""
        unique = list(dict.fromkeys(media))
        pixels = [self._store.open(m) if m.clip is None else self._store.frames(m) for m in unique]
        found = dict(zip(unique, self._family.features(unique, pixels), strict=True))
        return joined([found[medium] for medium in media])
