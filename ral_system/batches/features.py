"""Conversion of media to the inputs of a model's vision encoder."""

from __future__ import annotations

from collections.abc import Sequence

from ral_system.families.family import Family, Features, Occurrences, joined
from ral_system.media.store import MediaStore
from ral_system.types import Media


class FeatureExtractor:
    """Vision preprocessing of a family, applied to media of a store."""

    def __init__(self, family: Family, store: MediaStore) -> None:
        self._family, self._store = family, store

    def distinct(self, media: Sequence[Media]) -> tuple[list[Media], Occurrences]:
        """The distinct ones of `media`, and where each of `media` finds its own."""
        unique = list(dict.fromkeys(media))
        by_kind = {kind: [m for m in unique if m.kind == kind] for kind in self._family.visual_ids}
        index = {medium: i for of_kind in by_kind.values() for i, medium in enumerate(of_kind)}
        return unique, tuple((medium.kind, index[medium]) for medium in media)

    def __call__(self, media: Sequence[Media]) -> Features:
        """Features of media in order. Raises DataError."""
        pixels = [self._store.open(m) if m.clip is None else self._store.frames(m) for m in media]
        return joined(self._family.features(media, pixels))
